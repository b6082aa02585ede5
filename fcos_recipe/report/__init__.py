"""Reports of run directories as HTML and Markdown, with comparisons between runs."""
