"""What the paper printed, cell by cell: {table: {dataset: {row: values in the order of the experiment's columns}}}; None = not printed.

Datasets are named by their category. Figures 1, 3, 4, 5 and 7 have no printed numbers; what other tables print of them is given.
"""

from llmsrec_jax.data.amazon_reviews_2023.categories import TABLE_10

Values = tuple[float | None, ...]

MOVIES, SCIENTIFIC = "Movies_and_TV", "Industrial_and_Scientific"
ELECTRONICS, CDS = "Electronics", "CDs_and_Vinyl"
TRAINED_ON = ELECTRONICS  # in Table 7
COUNTED = ("users", "items", "interactions")

PUBLISHED: dict[str, dict[str, dict[str, Values]]] = {
    "table3": {  # NDCG@10: original, shuffled training
        SCIENTIFIC: {
            "SASRec": (0.2918, 0.2688),
            "TALLRec": (0.2585, 0.2579),
            "LLaRA": (0.2844, 0.2921),
            "CoLLM": (0.3111, 0.3181),
            "A-LLMRec": (0.2875, 0.2973),
            "LLM-SRec": (0.3388, 0.3224),
        },
        ELECTRONICS: {
            "SASRec": (0.2267, 0.2104),
            "TALLRec": (0.2249, 0.2223),
            "LLaRA": (0.2048, 0.2079),
            "CoLLM": (0.2565, 0.2636),
            "A-LLMRec": (0.2791, 0.2741),
            "LLM-SRec": (0.3044, 0.2838),
        },
        CDS: {
            "SASRec": (0.3451, 0.3312),
            "TALLRec": (0.3100, 0.3003),
            "LLaRA": (0.2464, 0.2695),
            "CoLLM": (0.3152, 0.3143),
            "A-LLMRec": (0.3119, 0.3078),
            "LLM-SRec": (0.3809, 0.3614),
        },
    },
    "table4": {  # HR@1: original, shuffled training
        SCIENTIFIC: {
            "SASRec": (0.3171, 0.2821),
            "TALLRec": (0.2221, 0.2181),
            "LLaRA": (0.3022, 0.2996),
            "CoLLM": (0.3010, 0.3165),
            "A-LLMRec": (0.2804, 0.2796),
        },
        ELECTRONICS: {
            "SASRec": (0.2390, 0.2158),
            "TALLRec": (0.1787, 0.1815),
            "LLaRA": (0.2616, 0.2650),
            "CoLLM": (0.2311, 0.2323),
            "A-LLMRec": (0.2672, 0.2684),
        },
        CDS: {
            "SASRec": (0.3662, 0.3386),
            "TALLRec": (0.2589, 0.2728),
            "LLaRA": (0.3142, 0.3530),
            "CoLLM": (0.3447, 0.3763),
            "A-LLMRec": (0.3319, 0.3528),
        },
    },
    "table5": {  # cosine of user vectors
        MOVIES: {
            "SASRec": (0.6535,),
            "TALLRec": (0.9731,),
            "LLaRA": (0.9639,),
            "CoLLM": (0.9067,),
            "A-LLMRec": (0.8872,),
            "LLM-SRec": (0.6128,),
        },
        SCIENTIFIC: {
            "SASRec": (0.7375,),
            "TALLRec": (0.9326,),
            "LLaRA": (0.9424,),
            "CoLLM": (0.9263,),
            "A-LLMRec": (0.8911,),
            "LLM-SRec": (0.7852,),
        },
        ELECTRONICS: {
            "SASRec": (0.7083,),
            "TALLRec": (0.9678,),
            "LLaRA": (0.9800,),
            "CoLLM": (0.8921,),
            "A-LLMRec": (0.8623,),
            "LLM-SRec": (0.7393,),
        },
        CDS: {
            "SASRec": (0.7454,),
            "TALLRec": (0.9570,),
            "LLaRA": (0.9624,),
            "CoLLM": (0.9526,),
            "A-LLMRec": (0.8706,),
            "LLM-SRec": (0.8589,),
        },
    },
    "table6": {  # NDCG@10, NDCG@20, HR@10, HR@20
        MOVIES: {
            "GRU4Rec": (0.3152, 0.3494, 0.4883, 0.6245),
            "BERT4Rec": (0.2959, 0.3303, 0.4785, 0.6213),
            "NextItNet": (0.2538, 0.2879, 0.4221, 0.5522),
            "SASRec": (0.3459, 0.3745, 0.5180, 0.6310),
            "CTRL": (0.2785, 0.3099, 0.4264, 0.5429),
            "RECFORMER": (0.2068, 0.2337, 0.3569, 0.5264),
            "TALLRec": (0.1668, 0.2126, 0.3234, 0.5060),
            "LLaRA": (0.1522, 0.1944, 0.2914, 0.4599),
            "CoLLM": (0.3223, 0.3577, 0.5089, 0.6491),
            "A-LLMRec": (0.3263, 0.3629, 0.5127, 0.6577),
            "LLM-SRec": (0.3560, 0.3924, 0.5569, 0.7010),
        },
        SCIENTIFIC: {
            "GRU4Rec": (0.2642, 0.2974, 0.4313, 0.5524),
            "BERT4Rec": (0.2576, 0.2913, 0.4437, 0.5822),
            "NextItNet": (0.2263, 0.2657, 0.3908, 0.5356),
            "SASRec": (0.2918, 0.3245, 0.4691, 0.5987),
            "CTRL": (0.2152, 0.2520, 0.3520, 0.4882),
            "RECFORMER": (0.2907, 0.3113, 0.4506, 0.5710),
            "TALLRec": (0.2585, 0.3048, 0.4574, 0.6276),
            "LLaRA": (0.2844, 0.3265, 0.4993, 0.6658),
            "CoLLM": (0.3111, 0.3489, 0.5182, 0.6676),
            "A-LLMRec": (0.2875, 0.3246, 0.4957, 0.6427),
            "LLM-SRec": (0.3388, 0.3758, 0.5532, 0.6992),
        },
        ELECTRONICS: {
            "GRU4Rec": (0.2364, 0.2743, 0.3843, 0.5196),
            "BERT4Rec": (0.1867, 0.2172, 0.3325, 0.4740),
            "NextItNet": (0.1712, 0.2069, 0.3017, 0.4324),
            "SASRec": (0.2267, 0.2606, 0.3749, 0.5096),
            "CTRL": (0.1680, 0.2003, 0.2861, 0.4152),
            "RECFORMER": (0.2032, 0.2441, 0.3586, 0.5213),
            "TALLRec": (0.2249, 0.2670, 0.3802, 0.5476),
            "LLaRA": (0.2048, 0.2454, 0.3441, 0.5032),
            "CoLLM": (0.2565, 0.2948, 0.4236, 0.5741),
            "A-LLMRec": (0.2791, 0.3173, 0.4622, 0.6137),
            "LLM-SRec": (0.3044, 0.3424, 0.4885, 0.6385),
        },
        CDS: {
            "GRU4Rec": (0.2155, 0.2530, 0.3712, 0.5092),
            "BERT4Rec": (0.3019, 0.3386, 0.5018, 0.6605),
            "NextItNet": (0.2207, 0.2562, 0.3842, 0.5422),
            "SASRec": (0.3451, 0.3795, 0.5278, 0.6635),
            "CTRL": (0.2968, 0.3316, 0.4574, 0.5957),
            "RECFORMER": (0.3238, 0.3642, 0.5140, 0.6739),
            "TALLRec": (0.3100, 0.3493, 0.5052, 0.6633),
            "LLaRA": (0.2464, 0.2951, 0.4665, 0.6590),
            "CoLLM": (0.3152, 0.3557, 0.5290, 0.6895),
            "A-LLMRec": (0.3119, 0.3526, 0.5300, 0.6914),
            "LLM-SRec": (0.3809, 0.4158, 0.6085, 0.7461),
        },
    },
    "table7": {  # HR@10 there, after training on TRAINED_ON; unseen items: random, zero, target, text
        SCIENTIFIC: {
            "SASRec": (0.1002, None, None, None),
            "TALLRec": (0.1214, None, None, None),
            "LLaRA": (0.1225, None, None, None),
            "CoLLM": (0.1232, None, None, None),
            "A-LLMRec": (0.1262, None, None, None),
            "LLM-SRec": (0.1310, None, None, None),
        },
        CDS: {
            "SASRec": (0.0974, None, None, None),
            "TALLRec": (0.1132, None, None, None),
            "LLaRA": (0.1174, None, None, None),
            "CoLLM": (0.1152, None, None, None),
            "A-LLMRec": (0.1217, None, None, None),
            "LLM-SRec": (0.1369, None, None, None),
        },
    },
    "table8": {  # NDCG@10, NDCG@20: original training, then shuffled training
        MOVIES: {
            "w/o distillation and uniformity": (0.3204, 0.3569, 0.3176, 0.3557),
            "w/o uniformity": (0.3339, 0.3700, 0.3089, 0.3456),
            "LLM-SRec": (0.3560, 0.3924, 0.3263, 0.3624),
        },
        SCIENTIFIC: {
            "w/o distillation and uniformity": (0.3088, 0.3450, 0.3013, 0.3379),
            "w/o uniformity": (0.3283, 0.3653, 0.3164, 0.3536),
            "LLM-SRec": (0.3388, 0.3758, 0.3224, 0.3591),
        },
        ELECTRONICS: {
            "w/o distillation and uniformity": (0.2659, 0.3066, 0.2589, 0.2990),
            "w/o uniformity": (0.2895, 0.3285, 0.2732, 0.3110),
            "LLM-SRec": (0.3044, 0.3424, 0.2838, 0.3210),
        },
        CDS: {
            "w/o distillation and uniformity": (0.2278, 0.2701, 0.2224, 0.2649),
            "w/o uniformity": (0.3622, 0.4013, 0.3478, 0.3885),
            "LLM-SRec": (0.3809, 0.4158, 0.3614, 0.3981),
        },
    },
    "table9": {  # one A6000: minutes per training epoch, per inference
        SCIENTIFIC: {
            "TALLRec": (194.43, 37.04),
            "LLaRA": (202.20, 38.79),
            "CoLLM": (214.12, 39.86),
            "A-LLMRec": (190.94, 35.01),
            "LLM-SRec": (185.91, 34.17),
        },
        ELECTRONICS: {
            "TALLRec": (236.73, 29.04),
            "LLaRA": (241.17, 30.62),
            "CoLLM": (251.51, 32.58),
            "A-LLMRec": (235.02, 28.14),
            "LLM-SRec": (218.21, 27.57),
        },
    },
    "table10": {
        category: {name: (float(n),) for name, n in zip(COUNTED, row, strict=True)}
        for category, row in TABLE_10.items()
    },
    "table11": {  # NDCG@10, HR@10
        MOVIES: {
            "with user representation": (0.3625, 0.5626),
            "LLM-SRec": (0.3560, 0.5569),
        },
        SCIENTIFIC: {
            "with user representation": (0.3342, 0.5516),
            "LLM-SRec": (0.3388, 0.5532),
        },
        ELECTRONICS: {
            "with user representation": (0.2924, 0.4725),
            "LLM-SRec": (0.3044, 0.4885),
        },
    },
    "table12": {  # NDCG@10: original, shuffled histories
        MOVIES: {"contrastive": (0.3410, 0.3151), "LLM-SRec": (0.3560, 0.3272)},
        SCIENTIFIC: {"contrastive": (0.2767, 0.2638), "LLM-SRec": (0.3388, 0.3232)},
        ELECTRONICS: {"contrastive": (0.2553, 0.2398), "LLM-SRec": (0.3044, 0.2845)},
    },
}


def _of(table: str, column: int) -> dict[str, dict[str, float | None]]:
    """{dataset: {row: value}} of one column."""
    found = PUBLISHED[table].items()
    return {data: {row: each[column] for row, each in rows.items()} for data, rows in found}


def _gathered() -> dict[str, dict[str, dict[str, Values]]]:
    """What tables print of figures, and of what stands in no table or figure of its own."""
    overall, hits, alike = _of("table6", 0), _of("table6", 2), _of("table5", 0)
    shuffled, trained, best = _of("table12", 1), _of("table3", 1), "LLM-SRec"
    five = list(PUBLISHED["table5"][MOVIES])
    tested = lambda data, row: shuffled.get(data, {}).get(row)
    return {
        "fig1": {
            data: {row: (overall[data][row], tested(data, row)) for row in five} for data in overall
        },
        "fig5": {
            data: {f"{best}, llama-3.2-3b": (overall[data][best], hits[data][best])}
            for data in overall
        },
        "fig7": {data: {best: (overall[data][best], trained[data][best])} for data in trained},
        "order_suite": {
            data: {
                row: (
                    overall[data][row],
                    trained.get(data, {}).get(row),
                    tested(data, row),
                    alike[data][row],
                )
                for row in ("SASRec", best)
            }
            for data in overall
        },
    }


PUBLISHED |= _gathered()


def value(table: str, dataset: str, row: str, column: int) -> float | None:
    """One cell; None where the paper has none."""
    values = PUBLISHED.get(table, {}).get(dataset, {}).get(row, ())
    return values[column] if column < len(values) else None
