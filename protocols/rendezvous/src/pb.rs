//! Reading and writing the part of protobuf that the messages use: numbers, bytes, messages within messages.
//!
//! Fields that nobody knows are skipped; of a field that comes twice the last counts, as protobuf has it.

/// Why bytes are no protobuf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PbError {
    #[error("a number is cut off or has more than 64 bits")]
    Number,
    #[error("a field is longer than what is there")]
    Length,
    #[error("field number zero, or a wire type that is none")]
    Key,
}

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of fixed width: none of ours.
    Fixed,
}

/// The fields of one message, in their order.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field: its number and its value; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, PbError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.number()?;
        let value = match key & 7 {
            0 => Value::Number(self.number()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let len = usize::try_from(self.number()?).map_err(|_| PbError::Length)?;
                Value::Bytes(self.take(len)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(PbError::Key),
        };
        // A field number has 29 bits.
        match key >> 3 {
            field @ 1..=0x1fff_ffff => Ok(Some((field, value))),
            _ => Err(PbError::Key),
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], PbError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(PbError::Length)?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, PbError> {
        let (number, len) = read_number(self.rest).ok_or(PbError::Number)?;
        self.take(len)?;
        Ok(number)
    }
}

/// A number at the head of `bytes`, and how many bytes it takes; `None` when it is cut off or past 64 bits.
pub(crate) fn read_number(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        let shift = u32::try_from(at).ok()?.checked_mul(7)?;
        let part = u64::from(byte & 0x7f);
        let shifted = part.checked_shl(shift)?;
        if shifted.checked_shr(shift) != Some(part) {
            return None;
        }
        number |= shifted;
        if byte & 0x80 == 0 {
            return Some((number, at.checked_add(1)?));
        }
    }
    None
}

pub(crate) fn write_number(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        // The low seven bits, and the sign that more follow.
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A field that is a number.
pub(crate) fn put_number(out: &mut Vec<u8>, field: u8, number: u64) {
    write_number(out, u64::from(field) << 3);
    write_number(out, number);
}

/// A field that is bytes, a text or a message.
pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    write_number(out, u64::from(field) << 3 | 2);
    write_number(out, u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_end_within_64_bits() {
        let mut most = Vec::new();
        write_number(&mut most, u64::MAX);
        assert_eq!(read_number(&most), Some((u64::MAX, 10)));
        most[9] = 2;
        assert_eq!(read_number(&most), None, "a 65th bit");
        assert_eq!(read_number(&[0x80; 20]), None);
        assert_eq!(read_number(&[0x80]), None);
        assert_eq!(read_number(&[]), None);
    }

    #[test]
    fn what_is_no_field_is_refused_and_what_nobody_knows_skipped() {
        let all = |bytes: &[u8]| {
            let mut fields = Fields::of(bytes);
            let mut found = Vec::new();
            while let Some((field, value)) = fields.next()? {
                found.push((field, format!("{value:?}")));
            }
            Ok(found)
        };
        assert_eq!(all(&[0x08, 1, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0x1d, 0, 0, 0, 0]).unwrap().len(), 3);
        assert_eq!(all(&[0x00, 1]), Err(PbError::Key));
        assert_eq!(all(&[0x0b]), Err(PbError::Key));
        assert_eq!(all(&[0x0a, 2, 1]), Err(PbError::Length));
        assert_eq!(all(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), Err(PbError::Length));
    }

    proptest! {
        #[test]
        fn numbers_are_read_as_written(number: u64, more: Vec<u8>) {
            let mut bytes = Vec::new();
            write_number(&mut bytes, number);
            let len = bytes.len();
            bytes.extend(more);
            prop_assert_eq!(read_number(&bytes), Some((number, len)));
        }
    }
}
