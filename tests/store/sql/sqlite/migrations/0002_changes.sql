CREATE TABLE changes (item TEXT NOT NULL, n INTEGER NOT NULL) STRICT;
CREATE TRIGGER items_changed AFTER UPDATE OF n ON items BEGIN
    INSERT INTO changes (item, n) VALUES (new.id, new.n);
END;
