"""Images for the tests, good and hostile. All are made by code; no archive is kept in the repository."""
