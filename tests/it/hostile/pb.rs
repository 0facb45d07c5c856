//! Protocol buffers by hand: what is needed to write messages that no library would.

/// An unsigned number.
pub fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(u8::try_from(n & 0x7f).unwrap() | 0x80);
        n >>= 7;
    }
    out.push(u8::try_from(n).unwrap());
    out
}

/// A field of a message: number, wire type 2, and its bytes.
pub fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2], length(bytes).as_slice(), bytes].concat()
}

/// A field of a message: number, wire type 0, and its value.
pub fn number(number: u8, value: u64) -> Vec<u8> {
    [&[number << 3], varint(value).as_slice()].concat()
}

/// A message with its length before it.
pub fn prefixed(message: &[u8]) -> Vec<u8> {
    [length(message).as_slice(), message].concat()
}

fn length(bytes: &[u8]) -> Vec<u8> {
    varint(u64::try_from(bytes.len()).unwrap())
}
