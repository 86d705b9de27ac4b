"""Pages for people: the API documentation."""
