CREATE TABLE changes (item TEXT NOT NULL, n BIGINT NOT NULL);
CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO changes (item, n) VALUES (new.id, new.n);
    RETURN NULL;
END;
$$;
CREATE TRIGGER items_changed AFTER UPDATE OF n ON items FOR EACH ROW EXECUTE FUNCTION note_change();
