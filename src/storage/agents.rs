//! The tables of agents.
//!
//! | table              | key                        | value                                                     |
//! |--------------------|----------------------------|-----------------------------------------------------------|
//! | `agents_v1`        | name                       | CBOR: hash, when installed, capabilities, hosts, purse …  |
//! | `agent_modules_v1` | BLAKE3 of the module       | the module                                                |
//! | `agent_kv_v1`      | (name, the agent's key)    | the agent's value                                         |
//! | `agent_logs_v1`    | (name, number of the line) | (Unix milliseconds, level, the line)                      |
//!
//! Modules are up to 8 MiB, so a write of one is the largest there is; only the operator installs, one at a time.

use minicbor::{Decode, Encode};
use redb::{ReadTransaction, ReadableTable as _, ReadableTableMetadata as _, TableDefinition, WriteTransaction};

use super::{Db, ReadError, WriteError, tables::bad_row, writer::Write};

/// A line's time, level and text.
type LogRow<'a> = (u64, u8, &'a str);

/// See the module's table.
pub(super) const AGENTS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("agents_v1");
/// See the module's table.
pub(super) const MODULES: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("agent_modules_v1");
/// See the module's table.
pub(super) const KV: TableDefinition<'static, (&str, &[u8]), &[u8]> = TableDefinition::new("agent_kv_v1");
/// See the module's table.
pub(super) const LOGS: TableDefinition<'static, (&str, u64), LogRow<'static>> = TableDefinition::new("agent_logs_v1");

/// Agents that may be installed.
pub(crate) const AGENTS_MAX: u64 = 256;
/// What one agent may keep: keys, and bytes of keys and values.
pub(crate) const KV_KEYS: u64 = 1_000;
pub(crate) const KV_BYTES: u64 = 1 << 20;
/// The longest key, and the longest value.
pub(crate) const KV_KEY: usize = 256;
pub(crate) const KV_VALUE: usize = 64 << 10;
/// Lines of log kept of one agent; the oldest go first.
const LOG_LINES: u64 = 1_000;

/// An installed agent.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct AgentRow {
    #[n(0)]
    pub(crate) name: String,
    /// BLAKE3 of the module.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub(crate) hash: [u8; 32],
    #[n(2)]
    pub(crate) bytes: u64,
    #[n(3)]
    pub(crate) installed_ms: u64,
    /// Names of capabilities that the operator granted.
    #[n(4)]
    pub(crate) granted: Vec<String>,
    /// What the module imports of the functions that need one.
    #[n(5)]
    pub(crate) wants: Vec<String>,
    /// Hosts that it may fetch from.
    #[n(6)]
    pub(crate) hosts: Vec<String>,
    /// What all its runs together may spend, in micro-credits.
    #[n(7)]
    pub(crate) allowance: u64,
    /// What they have spent, and what they may be spending now.
    #[n(8)]
    pub(crate) spent: u64,
    /// The export that is called.
    #[n(9)]
    pub(crate) entry: String,
    /// Fuel that a run may use.
    #[n(10)]
    pub(crate) fuel: u64,
    /// Milliseconds that a run may compute.
    #[n(11)]
    pub(crate) deadline_ms: u64,
    #[n(12)]
    pub(crate) runs: u64,
}

/// A line of an agent's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentLine {
    pub(crate) at_ms: u64,
    pub(crate) level: u8,
    pub(crate) text: String,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AgentWrite {
    /// A new agent, or another module under a name that is taken already, which keeps its keys.
    Install { row: Box<AgentRow>, module: Vec<u8> },
    /// Takes an agent away, with all that it kept.
    Remove { name: String },
    /// Sets a key, or removes it.
    Set { name: String, key: Vec<u8>, value: Option<Vec<u8>> },
    /// Takes from the purse, before it is spent; refused when there is not so much in it.
    Reserve { name: String, amount: u64 },
    /// Puts back what was not spent.
    Return { name: String, amount: u64 },
    /// A run has ended: what it logged.
    Ran { name: String, lines: Vec<AgentLine> },
}

/// Why a change was not made. The rest of its batch is not touched by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AgentRefusal {
    /// No agent of that name.
    #[error("no agent of that name is installed")]
    Unknown,
    /// [`AGENTS_MAX`].
    #[error("{AGENTS_MAX} agents are installed already; remove one first")]
    TooMany,
    /// [`KV_KEYS`] or [`KV_BYTES`].
    #[error("an agent keeps at most {KV_KEYS} keys and {KV_BYTES} bytes")]
    Quota,
    /// The purse is empty.
    #[error("{left} micro-credits are left of the allowance")]
    Purse {
        /// What is in it.
        left: u64,
    },
}

impl Db {
    /// Makes a change.
    ///
    /// # Errors
    /// When it is refused, the storage fails or failed before, or it is closed.
    pub(crate) async fn agent(&self, write: AgentWrite) -> Result<(), WriteError> {
        self.write(Write::Agent(write)).await
    }

    /// All agents, by name.
    ///
    /// # Errors
    /// When the storage fails (which poisons it) or is closed.
    pub(crate) async fn agents(&self) -> Result<Vec<AgentRow>, ReadError> {
        self.read(|txn| {
            let table = txn.open_table(AGENTS)?;
            table.iter()?.take(AGENTS_MAX as usize).map(|entry| decode(entry?.1.value())).collect()
        })
        .await
    }

    /// An agent and its module.
    ///
    /// # Errors
    /// As [`Db::agents`].
    pub(crate) async fn agent_named(&self, name: String) -> Result<Option<(AgentRow, Vec<u8>)>, ReadError> {
        self.read(move |txn| {
            let Some(row) = txn.open_table(AGENTS)?.get(name.as_str())?.map(|row| decode(row.value())).transpose()?
            else {
                return Ok(None);
            };
            let modules = txn.open_table(MODULES)?;
            let module = modules.get(row.hash.as_slice())?;
            let module = module.ok_or_else(|| bad_row("agent", &"its module is missing"))?.value().to_vec();
            Ok(Some((row, module)))
        })
        .await
    }

    /// A value that an agent keeps.
    ///
    /// # Errors
    /// As [`Db::agents`].
    pub(crate) async fn agent_value(&self, name: String, key: Vec<u8>) -> Result<Option<Vec<u8>>, ReadError> {
        self.read(move |txn| {
            let table = txn.open_table(KV)?;
            Ok(table.get((name.as_str(), key.as_slice()))?.map(|value| value.value().to_vec()))
        })
        .await
    }

    /// The last lines of an agent's log, the oldest first.
    ///
    /// # Errors
    /// As [`Db::agents`].
    pub(crate) async fn agent_log(&self, name: String, last: usize) -> Result<Vec<AgentLine>, ReadError> {
        self.read(move |txn| read_log(txn, &name, last)).await
    }
}

fn read_log(txn: &ReadTransaction, name: &str, last: usize) -> Result<Vec<AgentLine>, redb::Error> {
    let table = txn.open_table(LOGS)?;
    let mut lines = Vec::new();
    for entry in table.range((name, 0)..=(name, u64::MAX))?.rev().take(last.min(LOG_LINES as usize)) {
        let (_, row) = entry?;
        let (at_ms, level, text) = row.value();
        lines.push(AgentLine { at_ms, level, text: text.to_owned() });
    }
    lines.reverse();
    Ok(lines)
}

fn decode(row: &[u8]) -> Result<AgentRow, redb::Error> {
    minicbor::decode(row).map_err(|e| bad_row("agent", &e))
}

fn encode(row: &AgentRow) -> Result<Vec<u8>, redb::Error> {
    minicbor::to_vec(row).map_err(|e| bad_row("agent", &e))
}

/// Makes one change, or says why not.
pub(super) fn apply(txn: &WriteTransaction, write: AgentWrite) -> Result<Result<(), AgentRefusal>, redb::Error> {
    match write {
        AgentWrite::Install { row, module } => install(txn, &row, &module),
        AgentWrite::Remove { name } => remove(txn, &name),
        AgentWrite::Set { name, key, value } => set(txn, &name, &key, value.as_deref()),
        AgentWrite::Reserve { name, amount } => change(txn, &name, |row| {
            let left = row.allowance.saturating_sub(row.spent);
            row.spent = row.spent.checked_add(amount).filter(|_| amount <= left).ok_or(AgentRefusal::Purse { left })?;
            Ok(())
        }),
        AgentWrite::Return { name, amount } => change(txn, &name, |row| {
            row.spent = row.spent.saturating_sub(amount);
            Ok(())
        }),
        AgentWrite::Ran { name, lines } => {
            let counted = change(txn, &name, |row| {
                row.runs = row.runs.saturating_add(1);
                Ok(())
            })?;
            if counted.is_ok() {
                log(txn, &name, &lines)?;
            }
            Ok(counted)
        }
    }
}

fn change(
    txn: &WriteTransaction,
    name: &str,
    f: impl FnOnce(&mut AgentRow) -> Result<(), AgentRefusal>,
) -> Result<Result<(), AgentRefusal>, redb::Error> {
    let mut table = txn.open_table(AGENTS)?;
    let Some(mut row) = table.get(name)?.map(|row| decode(row.value())).transpose()? else {
        return Ok(Err(AgentRefusal::Unknown));
    };
    if let Err(refusal) = f(&mut row) {
        return Ok(Err(refusal));
    }
    table.insert(name, encode(&row)?.as_slice())?;
    Ok(Ok(()))
}

fn install(txn: &WriteTransaction, row: &AgentRow, module: &[u8]) -> Result<Result<(), AgentRefusal>, redb::Error> {
    let mut table = txn.open_table(AGENTS)?;
    let before = table.get(row.name.as_str())?.map(|row| decode(row.value())).transpose()?;
    if before.is_none() && table.len()? >= AGENTS_MAX {
        return Ok(Err(AgentRefusal::TooMany));
    }
    let mut row = row.clone();
    if let Some(before) = &before {
        // What was spent stays spent.
        (row.spent, row.runs) = (before.spent, before.runs);
    }
    table.insert(row.name.as_str(), encode(&row)?.as_slice())?;
    drop(table);
    txn.open_table(MODULES)?.insert(row.hash.as_slice(), module)?;
    before.map_or(Ok(()), |before| forget_module(txn, &before.hash))?;
    Ok(Ok(()))
}

/// Forgets a module that no agent has any more.
fn forget_module(txn: &WriteTransaction, hash: &[u8; 32]) -> Result<(), redb::Error> {
    let table = txn.open_table(AGENTS)?;
    for entry in table.iter()? {
        if decode(entry?.1.value())?.hash == *hash {
            return Ok(());
        }
    }
    txn.open_table(MODULES)?.remove(hash.as_slice())?;
    Ok(())
}

fn remove(txn: &WriteTransaction, name: &str) -> Result<Result<(), AgentRefusal>, redb::Error> {
    let removed = txn.open_table(AGENTS)?.remove(name)?.map(|row| decode(row.value())).transpose()?;
    let Some(row) = removed else { return Ok(Err(AgentRefusal::Unknown)) };
    txn.open_table(KV)?.retain(|(of, _), _| of != name)?;
    txn.open_table(LOGS)?.retain(|(of, _), _| of != name)?;
    forget_module(txn, &row.hash)?;
    Ok(Ok(()))
}

fn set(
    txn: &WriteTransaction,
    name: &str,
    key: &[u8],
    value: Option<&[u8]>,
) -> Result<Result<(), AgentRefusal>, redb::Error> {
    if txn.open_table(AGENTS)?.get(name)?.is_none() {
        return Ok(Err(AgentRefusal::Unknown));
    }
    let mut table = txn.open_table(KV)?;
    let Some(value) = value else {
        table.remove((name, key))?;
        return Ok(Ok(()));
    };
    let (mut keys, mut bytes) = (1_u64, (key.len() + value.len()) as u64);
    for entry in table.range((name, &[][..])..)? {
        let (other, kept) = entry?;
        let (of, other) = other.value();
        if of != name {
            break;
        }
        if other != key {
            keys += 1;
            bytes = bytes.saturating_add((other.len() + kept.value().len()) as u64);
        }
    }
    if keys > KV_KEYS || bytes > KV_BYTES {
        return Ok(Err(AgentRefusal::Quota));
    }
    table.insert((name, key), value)?;
    Ok(Ok(()))
}

fn log(txn: &WriteTransaction, name: &str, lines: &[AgentLine]) -> Result<(), redb::Error> {
    let mut table = txn.open_table(LOGS)?;
    let last = table.range((name, 0)..=(name, u64::MAX))?.next_back().transpose()?.map(|(key, _)| key.value().1);
    let mut next = last.map_or(0, |last| last.saturating_add(1));
    for line in lines {
        table.insert((name, next), (line.at_ms, line.level, line.text.as_str()))?;
        next = next.saturating_add(1);
    }
    let keep = next.saturating_sub(LOG_LINES);
    table.retain_in((name, 0)..(name, keep), |_, _| false)?;
    Ok(())
}
