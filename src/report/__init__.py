"""The comparison as Markdown, CSV and a page, made from what was measured."""
