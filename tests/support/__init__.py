"""What tests share: servers, fakes, oracles and files. conftest.py has only what pytest must make for each test."""
