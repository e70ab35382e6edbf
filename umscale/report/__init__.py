"""One self-contained page from a results store: `umscale report`.

``build.py`` puts a page together from what ``evidence.py`` asked of the library; ``page.py`` writes it as HTML or as
Markdown.
"""
