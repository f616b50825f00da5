"""The task of tables: right answers, and sets of questions that do not share draws."""

import numpy as np

from mdmscale.analysis.decision.hops import HopsTask, QuestionSet


def test_answers_follow_the_tables() -> None:
    task = HopsTask(is_new=True, base=4, hops=6)
    tables = task.tables()
    for row in task.questions(QuestionSet.TRAINING, 0, 20):
        number = 4 * row[0] + row[1]
        for hop in range(6):
            name, high, low = row[2 + 3 * hop : 5 + 3 * hop]
            number = tables[name - 4, number]
            assert number == 4 * high + low
    assert task.is_answer.sum() == 12 and task.length == 20


def test_sets_of_questions_differ_and_questions_do_not_depend_on_how_many_are_asked() -> None:
    task = HopsTask(is_new=True)
    sets = {which: task.questions(which, 0, 30) for which in QuestionSet}
    assert len({each.tobytes() for each in sets.values()}) == len(QuestionSet)
    assert np.array_equal(sets[QuestionSet.TUNING][10:20], task.questions(QuestionSet.TUNING, 10, 10))


def test_fine_tuning_has_other_tables() -> None:
    old, new = HopsTask(is_new=False).tables(), HopsTask(is_new=True).tables()
    assert old.shape == new.shape == (2, 16)
    assert (old != new).mean() > 0.5
    assert all(sorted(table) == list(range(16)) for table in (*old, *new))
