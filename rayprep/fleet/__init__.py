"""Ray: the driver, the agent on each host, the coordinator. The only folder that imports ray."""
