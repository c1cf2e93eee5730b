//! What a dump holds: every table with its columns, parents before their children. A test compares it with the schema.

/// What a column holds, whichever the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Int,
    Real,
    Flag,
    Text,
    Bytes,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: &'static [(&'static str, Kind)],
    /// The columns that say which row it is, for an order that does not change.
    pub(super) key: &'static str,
    /// Whether the database numbers its rows.
    pub(super) numbered: bool,
}

macro_rules! tables {
    ($($name:ident by $key:literal $($numbered:ident)? { $($kind:ident: $($column:ident)+;)+ })+) => {
        pub(super) const TABLES: &[Table] = &[$(Table {
            name: stringify!($name),
            columns: &[$($((stringify!($column), Kind::$kind)),+),+],
            key: $key,
            numbered: false $(|| tables!(@$numbered))?,
        }),+];
    };
    (@numbered) => { true };
}

tables! {
    workspaces by "id" numbered { Int: id created_at config_version config_revision; Text: name subscription detection; }
    tokens by "id" numbered {
        Int: id workspace_id rate_limit created_at expires_at revoked_at; Text: name role; Bytes: lookup hash;
    }
    nodes by "id" numbered {
        Int: id workspace_id created_at config_version enroll_until renew_before trust_version;
        Text: uuid name ip location os interface;
        Bytes: key_hash;
    }
    node_states by "node_id" { Int: node_id last_seen; Text: heartbeat; Real: ratio; }
    allowlist by "id" numbered { Int: id workspace_id node_id created_at; Text: prefix label; }
    thresholds by "id" numbered { Int: id workspace_id created_at updated_at; Text: target label thresholds; }
    rules by "id" numbered {
        Int: id workspace_id cooldown_minutes created_at updated_at;
        Text: name trigger_json action_json scope_json; Flag: enabled;
    }
    incidents by "id" numbered {
        Int: id workspace_id node_id started_at closed_at received_at;
        Text: uuid target status severity family report severity_set; Flag: false_positive;
    }
    incident_notes by "id" numbered { Int: id incident_id at; Text: kind author text; }
    executions by "id" numbered {
        Int: id workspace_id incident_id rule_id at; Text: node_uuid uuid outcome execution;
    }
    commands by "id" numbered { Int: id node_id created_at ended_at; Text: uuid order_json status error output; }
    rate_windows by "bucket" { Int: ends_at used; Text: bucket; }
    metrics by "node_id, at_secs" {
        Int: node_id at_secs pps bps dropped_pps tcp_pps udp_pps icmp_pps other_pps;
    }
    metrics_minutes by "node_id, at_secs" {
        Int: node_id at_secs samples pps bps dropped_pps tcp_pps udp_pps icmp_pps other_pps peak_pps peak_bps;
    }
    audit by "workspace_id, seq" { Int: workspace_id seq at; Text: actor action object result detail; Bytes: hash; }
    audit_heads by "workspace_id" { Int: workspace_id seq; Bytes: hash; }
    idempotency by "actor, key_hash" { Int: status created_at; Text: actor; Bytes: key_hash request_hash answer; }
    pcaps by "id" numbered {
        Int: id workspace_id node_id incident_id part packets bytes created_at; Text: upload format; Bytes: sha256;
    }
    pcap_uploads by "id" numbered { Int: id node_id incident_id chunks touched_at; Text: key upload; }
    adapters by "id" numbered {
        Int: id workspace_id deleting_at checked_at latency_ms created_at updated_at;
        Text: kind name endpoint config capabilities check_error; Bytes: auth_token;
    }
    mitigation_rules by "id" numbered {
        Int: id workspace_id adapter_id ttl_secs since attempts next_at leased_until created_at announced_at
             expires_at ended_at;
        Text: uuid target intent adapter_name reason status ending last_error claim;
    }
    runbooks by "id" numbered {
        Int: id workspace_id created_at updated_at; Text: name description conditions steps; Flag: active;
    }
    runbook_executions by "id" numbered {
        Int: id workspace_id runbook_id incident_id position tries next_at leased_until created_at started_at ended_at;
        Text: uuid runbook_name started_by node conditions steps status error claim; Flag: test;
    }
    escalation_policies by "workspace_id" { Int: workspace_id updated_at; Text: policy; }
    scrubbing by "id" numbered {
        Int: id workspace_id created_at updated_at; Text: name provider prefixes; Bytes: credentials;
    }
    indicators by "id" numbered {
        Int: id workspace_id first_seen last_seen expires_at created_at updated_at;
        Text: source value kind description; Real: confidence;
    }
    feed_tokens by "id" numbered {
        Int: id workspace_id created_at expires_at revoked_at; Text: name; Bytes: lookup hash;
    }
    suricata_sids by "id" numbered { Int: id workspace_id used_at; Text: value; }
    maintenance_windows by "id" numbered {
        Int: id workspace_id node_id created_at updated_at; Text: name schedule; Flag: enabled;
    }
    destinations by "id" numbered {
        Int: id workspace_id created_at updated_at failures open_until paused_until delivered_at failed_at lease_until
             claimed_at;
        Text: duty kind name min_severity settings secret_names last_error lease;
        Flag: enabled; Bytes: sealed;
    }
    deliveries by "id" numbered {
        Int: id workspace_id destination_id incident_id attempts next_at created_at attempted_at ended_at http_status
             latency_ms;
        Text: uuid event body status error answer;
    }
    staged_rules by "id" numbered {
        Int: id workspace_id destination_id incident_id ttl_secs created_at expires_at decided_at;
        Text: action status decided_by reason command; Flag: undo_at_resolve;
    }
    profile_applications by "id" numbered {
        Int: id workspace_id node_id confirm_secs created_at decided_at told_at;
        Text: uuid profile suite custom decision command last_command told told_reason;
    }
    authorities by "id" numbered {
        Int: id workspace_id created_at not_after changed_at;
        Text: name state; Bytes: certificate fingerprint sealed_key;
    }
    certificates by "id" numbered {
        Int: id workspace_id authority_id node_id not_before not_after issued_at revoked_at;
        Text: serial; Bytes: fingerprint;
    }
}

impl Table {
    pub(super) fn column_list(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}
