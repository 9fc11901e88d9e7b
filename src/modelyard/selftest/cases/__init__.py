"""What campaigns send: tables of cases, shared with the tests."""
