"""What a model's latency will be at other widths: tables of its operators, a prediction fitted to whole models, and the truth."""
