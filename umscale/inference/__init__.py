"""Models of finished runs: read again, asked, measured on other text, handed on."""
