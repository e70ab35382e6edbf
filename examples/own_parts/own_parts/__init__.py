"""Parts of one's own: umscale finds them by the entry points in pyproject.toml, and imports one when it is named."""
