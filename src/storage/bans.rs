//! The table of bans.
//!
//! | table     | key                                   | value                                                           |
//! |-----------|---------------------------------------|-----------------------------------------------------------------|
//! | `bans_v1` | peer id or range of addresses, as text | CBOR `[since_ms, until_ms, by, times, host or null, reason]`   |

use minicbor::{Decoder, Encoder};
use quelea_behaviours::bans::{Ban, By, MAX_BANS, Subject};
use redb::{ReadTransaction, ReadableTable as _, Table, TableDefinition};

use super::tables::bad_row;

/// See the module's table.
pub(super) const BANS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("bans_v1");

/// A change of the table.
#[derive(Debug)]
pub(super) enum Change {
    Put(Box<Ban>),
    Remove(Subject),
}

fn encode(ban: &Ban) -> Vec<u8> {
    let mut e = Encoder::new(Vec::new());
    // Writing to a vector cannot fail.
    let written = (|| {
        let by = match ban.by {
            By::Operator => 0,
            By::Conduct => 1,
            // Versions that do not know it take it for conduct.
            By::Fraud => 2,
        };
        e.array(6)?.u64(ban.since_ms)?.u64(ban.until_ms)?.u8(by)?.u8(ban.times)?;
        match ban.host {
            Some(host) => e.str(&host.to_string())?,
            None => e.null()?,
        };
        e.str(&ban.reason)?;
        Ok::<_, minicbor::encode::Error<std::convert::Infallible>>(())
    })();
    debug_assert!(written.is_ok());
    e.into_writer()
}

fn decode(key: &str, value: &[u8]) -> Result<Ban, redb::Error> {
    let subject = key.parse().map_err(|e| bad_row("subject of a ban", &e))?;
    let mut d = Decoder::new(value);
    let mut fields = || {
        if d.array()? != Some(6) {
            return Err(minicbor::decode::Error::message("not six fields"));
        }
        let (since_ms, until_ms, by, times) = (d.u64()?, d.u64()?, d.u8()?, d.u8()?);
        let host = match d.datatype()? {
            minicbor::data::Type::Null => d.null().map(|()| None)?,
            _ => Some(d.str()?.parse().map_err(minicbor::decode::Error::custom)?),
        };
        let by = match by {
            0 => By::Operator,
            2 => By::Fraud,
            _ => By::Conduct,
        };
        Ok(Ban { subject, since_ms, until_ms, by, times, host, reason: d.str()?.to_owned() })
    };
    fields().map_err(|e| bad_row("ban", &e))
}

pub(super) fn apply(table: &mut Table<'_, &str, &[u8]>, change: Change) -> Result<(), redb::Error> {
    match change {
        Change::Put(ban) => drop(table.insert(ban.subject.to_string().as_str(), encode(&ban).as_slice())?),
        Change::Remove(subject) => drop(table.remove(subject.to_string().as_str())?),
    }
    Ok(())
}

/// All of them; no more than are ever kept.
pub(super) fn read(txn: &ReadTransaction) -> Result<Vec<Ban>, redb::Error> {
    let table = txn.open_table(BANS)?;
    let mut bans = Vec::new();
    for entry in table.iter()?.take(MAX_BANS) {
        let (key, value) = entry?;
        bans.push(decode(key.value(), value.value())?);
    }
    Ok(bans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_comes_back_as_it_was() {
        let peer = Subject::Peer(libp2p::PeerId::random());
        let range = Subject::Range("203.0.113.0/24".parse().unwrap());
        for (subject, host, by) in [
            (peer, Some("203.0.113.7/32".parse().unwrap()), By::Conduct),
            (range, None, By::Operator),
            (peer, None, By::Fraud),
        ] {
            let ban = Ban { subject, since_ms: 1, until_ms: u64::MAX, by, times: 3, host, reason: "noise".into() };
            assert_eq!(decode(&subject.to_string(), &encode(&ban)).unwrap(), ban);
        }
        assert!(decode("203.0.113.0/24", &[0x80]).is_err() && decode("nobody", &[]).is_err());
    }
}
