"""The page report.html of a run: `read` the folder, draw its `charts`, fill the `page`."""
