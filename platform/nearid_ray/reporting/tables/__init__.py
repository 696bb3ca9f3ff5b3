"""The paper's tables from stored measures: layouts, published values beside ours, verdicts, three output formats."""
