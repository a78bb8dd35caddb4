"""A gate's verdict for CI systems: JUnit XML, Markdown, and GitHub's annotations and outputs."""
