"""Gates, and the report in its forms: report.json, page, summary, JUnit, and what ships."""
