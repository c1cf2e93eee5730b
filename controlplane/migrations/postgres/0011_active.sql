-- Incidents that are active, by node: few of many, asked for with every list of nodes.
CREATE INDEX incidents_active ON incidents (node_id) WHERE status = 'active';
