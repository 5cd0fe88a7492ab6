"""Reports: what a run left on disk as one HTML file, and as a plain table in the terminal.

    inputs.py        what a report is made of, and how files that may be missing or cut short are read
    report.py        all sections -> one self-contained HTML file
    page.py          HTML pieces and the page around them (page.html, report.css)
    figures.py       matplotlib -> inline SVG, colours and markers of the models
    headline.py      models x seen / held out
    comparison.py    task by task, figure and numbers
    loss_curves.py   loss of each stage
    samples.py       questions and what each model said
    provenance.py    how it was made: recipes, data, time, versions
    table.py         the same comparison as plain text

Reads files only and imports no other room. What is missing is said in the page.
"""
