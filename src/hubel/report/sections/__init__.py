"""One section of the page a file. Each is a function of the Document; the order is `hubel.report.page.SECTIONS`."""
