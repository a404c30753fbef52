"""All studies, by name."""

from benchmarks import BenchmarkError
from benchmarks.studies import blog, blog_small, earlier, supermasks, tickets, which_estimator
from benchmarks.studies.study import Study

STUDIES = {
    study.name: study
    for study in (
        blog_small.STUDY,
        which_estimator.STUDY,
        supermasks.STUDY,
        tickets.STUDY,
        blog.STUDY,
        *earlier.STUDIES,
    )
}


def study(name: str) -> Study:
    if name not in STUDIES:
        raise BenchmarkError(f"No study is called {name!r}. Choose one of: {', '.join(STUDIES)}.")
    return STUDIES[name]
