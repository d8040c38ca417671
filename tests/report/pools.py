"""For each part of the page, the part of the JSON that its numbers come from."""

from typing import Any

QUANTILES = ("p5", "p25", "p50", "p75", "p95")
RULES = {
    "lowest right source": "margin_false",
    "lowest, known ones too": "margin_false_with_known",
    "own right source": "margin_false_own",
}
LITERAL = {
    "similarity": ["5% to 95%"],
    "steering": ["Right of 0", "left of 0", "near 0"],
    "relevance": ["near 0"],
    "distance": ["above 1"],
    "norms": ["at 1", "from 1"],
    "hubs": ["frequent 1%"],
}
"""Words of the page by section whose numbers are no measurements."""


def opening_pool(data: dict[str, Any]) -> Any:
    """What the first sentence is made of."""
    store, one = data["lint"]["of_store"], data["lint"]["of_generation"]
    return [
        *(store["questions"]["count"], store["sources"]["count"], data["pairs"]),
        *(len(data["clusters"]["pairs"]), one["slots"] // one["rows"]),
        *(data["lint"]["generation"], data["summary"]["bytes"]),
    ]


def mend_pool(data: dict[str, Any]) -> Any:
    """What the things to mend are made of, on the real folder."""
    one, margin = data["lint"]["of_generation"], data["lint"]["thresholds"]["margin"]
    parts = [one["known_right"]["rows"], one["margin_false"]["rows"], 1 - margin]
    return [*parts, *(v for k, v in one["weak_right"].items() if k.startswith("lowest"))]


def section_pool(name: str, data: dict[str, Any]) -> Any:
    """What the sentence of a section, and the labels of its picture, are made of."""
    lint, clusters = data["lint"], data["clusters"]
    store, one = lint["of_store"], lint["of_generation"]
    margin, n_neg = lint["thresholds"]["margin"], one["slots"] // one["rows"]
    median = one["similarity"]["all"]["own"]["p50"]
    worst, shown = data["worst"], data["generations"]
    return {
        "splits": [store["splits"], store["questions_in_two_splits"], _split_shares(data)],
        "similarity": [one["similarity"]["all"], median - margin * abs(median), 1, 2, 3, 4],
        "false": [one["margin_false"], one["known_right"]["rows"], 1 - margin, 1, 2, 3, 4],
        "untrained": [one["untrained"]["all"], 1 + n_neg],
        "curriculum": [data["curriculum"][0], data["curriculum"][-1]],
        "steering": [d["cosine"] for d in one["steering"].values()],
        "clusters": [
            *(len(clusters["pairs"]), min(clusters["pairs"]), max(clusters["pairs"])),
            *(sum(clusters["pairs"]) / len(clusters["pairs"]), [*range(len(clusters["pairs"]))]),
        ],
        "map": [clusters["sources"], clusters["variance"]],
        "relevance": [],
        "distance": [],
        "norms": [],
        "generations": [
            shown[-1]["changed"],
            sum(g["margin_false"] is None for g in shown),
            len(shown),
        ],
        "hubs": one["hubness"],
        "worst": [len(worst), len({w["question"] for w in worst}), [w["pair"] for w in worst]],
    }[name]


def _split_shares(data: dict[str, Any]) -> list[dict[str, float]]:
    of, splits = data["pairs"], data["lint"]["of_store"]["splits"].values()
    return [{"count": pairs, "of": of, "share": pairs / of} for pairs in splits]


def row_pool(name: str, title: str, row: list[str], data: dict[str, Any]) -> Any:
    """What a row of a table of a section is made of."""
    lint, clusters = data["lint"], data["clusters"]
    one, first = lint["of_generation"], row[0]
    part, _, which = first.partition(", ")
    if name == "splits":
        pairs = lint["of_store"]["splits"].get(first, data["pairs"])
        two = lint["of_store"]["questions_in_two_splits"]
        return two if first == "questions in two splits" else [pairs, pairs / data["pairs"]]
    if name == "similarity":
        values = one["similarity"][part]
        return values["own"] if which == "right source" else [values["tiers"][which[-1]], which[-1]]
    if name == "false" and title == "Above the margin":
        return one[RULES[first]]
    if name == "false":
        return [one[key] for key in ("known_right", "weak_right", "evaluation_sources")]
    if name == "untrained":
        return one["untrained"][part][which]
    if name == "curriculum":
        return [epoch for epoch in data["curriculum"] if str(epoch[0]) == first]
    if name == "steering":
        return one["steering"][first]
    if name == "clusters":
        cluster = int(first)
        return [cluster, clusters["pairs"][cluster], clusters["centroids"][cluster]]
    if name == "map":
        low, high = clusters["y"]
        counts = len(clusters["density"])
        places = [low + (r + 0.5) * (high - low) / counts for r in range(counts)]
        (n,) = (n for n, y in enumerate(places) if abs(y - float(first)) < 0.006)
        return [places[n], clusters["density"][n]]
    if name in ("relevance", "distance", "norms"):
        return _bin(name, first, data)
    if name == "hubs":
        return [h for h in one["hubness"]["most"] if str(h[0]) == first] or one["hubness"]
    assert name == "worst"
    return next(w for w in data["worst"] if str(w["pair"]) == first)


def _bin(name: str, first: str, data: dict[str, Any]) -> Any:
    keys = {"distance": ["centroid_distance"], "norms": ["question_norm", "source_norm"]}
    every = [data["histograms"][key] for key in keys.get(name, [name])]
    step = (every[0]["high"] - every[0]["low"]) / len(every[0]["counts"])
    begin = float(first.split(" to ")[0])
    n = round((begin - every[0]["low"]) / step)
    edges = [every[0]["low"] + step * n, every[0]["low"] + step * (n + 1)]
    return [edges, [one["counts"][n] for one in every]]
