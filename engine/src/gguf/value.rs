//! Metadata values, read from the file's bytes each time they are asked for.

use super::{GgufError, cursor::Cursor};

/// The type of a metadata value, by GGUF's numbers.
#[allow(missing_docs, reason = "the variants are GGUF's names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Str = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    pub(super) fn from_id(id: u32) -> Option<Self> {
        use ValueType::{Array, Bool, F32, F64, I8, I16, I32, I64, Str, U8, U16, U32, U64};
        [U8, I8, U16, I16, U32, I32, F32, Bool, Str, Array, U64, I64, F64].get(usize::try_from(id).ok()?).copied()
    }

    /// The fewest bytes one value of this type takes in the file.
    pub(super) fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Str => 8,
            // Element type and count.
            Self::Array => 12,
        }
    }
}

/// One metadata value.
#[allow(missing_docs, reason = "the variants are GGUF's names")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(&'a str),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    pub(super) fn read(cursor: &mut Cursor<'a>, ty: ValueType, key: &str) -> Result<Self, GgufError> {
        Ok(match ty {
            ValueType::U8 => Self::U8(u8::from_le_bytes(cursor.array(key)?)),
            ValueType::I8 => Self::I8(i8::from_le_bytes(cursor.array(key)?)),
            ValueType::U16 => Self::U16(u16::from_le_bytes(cursor.array(key)?)),
            ValueType::I16 => Self::I16(i16::from_le_bytes(cursor.array(key)?)),
            ValueType::U32 => Self::U32(u32::from_le_bytes(cursor.array(key)?)),
            ValueType::I32 => Self::I32(i32::from_le_bytes(cursor.array(key)?)),
            ValueType::F32 => Self::F32(f32::from_le_bytes(cursor.array(key)?)),
            ValueType::U64 => Self::U64(u64::from_le_bytes(cursor.array(key)?)),
            ValueType::I64 => Self::I64(i64::from_le_bytes(cursor.array(key)?)),
            ValueType::F64 => Self::F64(f64::from_le_bytes(cursor.array(key)?)),
            ValueType::Bool => {
                let offset = cursor.offset();
                match cursor.array::<1>(key)? {
                    [0] => Self::Bool(false),
                    [1] => Self::Bool(true),
                    [other] => return Err(invalid(key, offset, other.to_string(), "a boolean, 0 or 1")),
                }
            }
            ValueType::Str => Self::Str(cursor.string(key)?),
            ValueType::Array => Self::Array(Array::read(cursor, key, 0)?),
        })
    }

    /// The value as an unsigned whole number, when it is one.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::U64(v) => Some(v),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a signed whole number, when it is one.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::U64(v) => v.try_into().ok(),
            Self::I8(v) => Some(v.into()),
            Self::I16(v) => Some(v.into()),
            Self::I32(v) => Some(v.into()),
            Self::I64(v) => Some(v),
            _ => self.as_u64().and_then(|v| v.try_into().ok()),
        }
    }

    /// The value as a 32-bit float, when it is a float.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Self::F32(v) => Some(v),
            #[allow(clippy::cast_possible_truncation, reason = "rounding to f32 is what the caller asks for")]
            Self::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// What the value is, in words, for an error message.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Str(text) => format!("the string {:?}", text.chars().take(40).collect::<String>()),
            Self::Array(array) => format!("an array of {} {:?}", array.len(), array.element()),
            other => format!("{other:?}"),
        }
    }
}

/// Arrays inside arrays: GGUF allows them, nobody writes them, and each level costs a call.
const MAX_NESTING: u32 = 4;

/// A metadata array, still in the file's bytes.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    element: ValueType,
    len: u64,
    /// The elements as they stand in the file.
    bytes: &'a [u8],
    /// Where they stand.
    offset: usize,
}

impl std::fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{:?}; {}]", self.element, self.len)
    }
}

impl<'a> Array<'a> {
    fn read(cursor: &mut Cursor<'a>, key: &str, depth: u32) -> Result<Self, GgufError> {
        let at = cursor.offset();
        if depth >= MAX_NESTING {
            return Err(invalid(key, at, format!("arrays nested {depth} deep"), "at most 4 levels"));
        }
        let id = cursor.u32(key)?;
        let element = ValueType::from_id(id)
            .ok_or_else(|| invalid(key, at, format!("element type {id}"), "a GGUF value type, 0 to 12"))?;
        let at = cursor.offset();
        let len = cursor.u64(key)?;
        let needed = len.saturating_mul(element.min_bytes());
        let left = cursor.left();
        if needed > left {
            return Err(GgufError::Truncated {
                what: format!("metadata key '{key}', an array of {len} {element:?}"),
                offset: at,
                needed,
                left,
            });
        }
        let offset = cursor.offset();
        let start = *cursor;
        match element {
            ValueType::Str => {
                for _ in 0..len {
                    cursor.raw_string(key)?;
                }
            }
            ValueType::Array => {
                for _ in 0..len {
                    Self::read(cursor, key, depth.saturating_add(1))?;
                }
            }
            fixed => {
                cursor.take(len.saturating_mul(fixed.min_bytes()), || format!("metadata key '{key}'"))?;
            }
        }
        Ok(Self { element, len, bytes: start.until(cursor), offset })
    }

    /// The elements' type.
    pub fn element(&self) -> ValueType {
        self.element
    }

    /// How many elements there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order.
    pub(super) fn values(&self, key: &str) -> impl Iterator<Item = Result<Value<'a>, GgufError>> {
        let mut cursor = Cursor::at(self.bytes, self.offset);
        (0..self.len).map(move |_| match self.element {
            ValueType::Array => Array::read(&mut cursor, key, 1).map(Value::Array),
            ty => Value::read(&mut cursor, ty, key),
        })
    }
}

fn invalid(key: &str, offset: usize, found: String, expected: &str) -> GgufError {
    GgufError::Invalid { what: format!("metadata key '{key}'"), offset, found, expected: expected.to_owned() }
}
