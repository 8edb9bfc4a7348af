-- Tokens of another store, brought in with their secrets.

-- name: token_of_secret
-- Revoked and expired ones too: their secrets stay taken.
SELECT t.account, a.username, t.kind, t.revoked_at
FROM tokens AS t JOIN accounts AS a ON a.id = t.account WHERE t.hash = :hash;

-- name: account_is
-- A row where the account of that name has that id, which it has not if somebody else made it first.
SELECT id FROM accounts WHERE id = :id AND username = :username;
