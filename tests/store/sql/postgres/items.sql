-- What the conformance suite of the drivers needs.

-- name: insert_item
INSERT INTO items (id, n, body) VALUES (:id, :n, :body);

-- name: insert_items
-- One JSON parameter carries any number of rows.
INSERT INTO items (id, n)
SELECT id, n FROM json_to_recordset(:items::text::json) AS item (id TEXT, n BIGINT);

-- name: insert_note
INSERT INTO notes (item, n) VALUES (:item, :n);

-- name: get_item
SELECT id, n, body FROM items WHERE id = :id;

-- name: add_to_item
UPDATE items SET n = n + :by WHERE id = :id RETURNING n;

-- name: set_item_if
UPDATE items SET n = :n WHERE id = :id AND n = :was RETURNING n;

-- name: list_items
SELECT id, n FROM items ORDER BY id;

-- name: sum_items
SELECT count(*), coalesce(sum(n), 0)::bigint FROM items;

-- name: count_changes
SELECT count(*) FROM changes WHERE item = :item;
