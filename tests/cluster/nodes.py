"""`nodes.py ADDRESS`: joins that cluster and prints its living nodes, and what a task sees that runs on each."""

import json
import os
import sys

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

DEADLINE_S = 60.0


@ray.remote(num_cpus=0)
def seen() -> dict[str, object]:
    return {"nice": os.nice(0), "environ": dict(os.environ)}


ray.init(address=sys.argv[1], log_to_driver=False)
nodes = [node for node in ray.nodes() if node["Alive"]]
asked = [
    seen.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
    for node in nodes
]
answers = ray.get(asked, timeout=DEADLINE_S)
print(
    json.dumps(
        {
            node["NodeManagerAddress"]: {"labels": node["Labels"], "host": node["NodeManagerHostname"], **answer}
            for node, answer in zip(nodes, answers, strict=True)
        }
    )
)
