"""A report of artifacts: gathered once into one frozen structure, from which the page, the Markdown and the JSON are made. Without torch."""
