"""Scores of a model on suites of questions, with lm-evaluation-harness as the engine and our protocol.

    suites/        WHICH questions: suite.py (what a suite is), procedural.py, gsm8k.py, mmlu.py,
                   lm_eval_task.py (a suite's task as lm-eval wants it)
    scoring.py     is an output right: extraction and comparison
    normalize.py   accuracy above chance
    statistics.py  standard errors, intervals, paired differences
    run.py         a model on a suite -> results and samples
    results.py     results of several suites and models, joined
    lm.py          our models behind lm-eval's interface (the only file with torch)

Nothing is imported here. Rows come in by callables: this room opens no data set and reads no recipe.
"""
