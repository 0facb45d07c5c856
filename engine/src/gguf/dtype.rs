//! The element types a GGUF tensor can have.

/// A tensor's element type, by ggml's numbers and names.
///
/// Values are stored in blocks: [`DType::block_len`] elements along the innermost dimension take
/// [`DType::block_bytes`] bytes.
#[allow(missing_docs, reason = "the variants are ggml's names")]
#[allow(non_camel_case_types, reason = "the variants are ggml's names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    IQ1_M,
    I8,
    I16,
    I32,
    I64,
    F64,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    /// A number that this reader has no name for. Files with such tensors open; using one is refused.
    Unknown(u32),
}

/// ggml's number, name, elements per block and bytes per block of each type.
const TABLE: [(DType, u32, &str, u64, u64); 34] = [
    (DType::F32, 0, "F32", 1, 4),
    (DType::F16, 1, "F16", 1, 2),
    (DType::Q4_0, 2, "Q4_0", 32, 18),
    (DType::Q4_1, 3, "Q4_1", 32, 20),
    (DType::Q5_0, 6, "Q5_0", 32, 22),
    (DType::Q5_1, 7, "Q5_1", 32, 24),
    (DType::Q8_0, 8, "Q8_0", 32, 34),
    (DType::Q8_1, 9, "Q8_1", 32, 36),
    (DType::Q2_K, 10, "Q2_K", 256, 84),
    (DType::Q3_K, 11, "Q3_K", 256, 110),
    (DType::Q4_K, 12, "Q4_K", 256, 144),
    (DType::Q5_K, 13, "Q5_K", 256, 176),
    (DType::Q6_K, 14, "Q6_K", 256, 210),
    (DType::Q8_K, 15, "Q8_K", 256, 292),
    (DType::IQ2_XXS, 16, "IQ2_XXS", 256, 66),
    (DType::IQ2_XS, 17, "IQ2_XS", 256, 74),
    (DType::IQ3_XXS, 18, "IQ3_XXS", 256, 98),
    (DType::IQ1_S, 19, "IQ1_S", 256, 50),
    (DType::IQ4_NL, 20, "IQ4_NL", 32, 18),
    (DType::IQ3_S, 21, "IQ3_S", 256, 110),
    (DType::IQ2_S, 22, "IQ2_S", 256, 82),
    (DType::IQ4_XS, 23, "IQ4_XS", 256, 136),
    (DType::I8, 24, "I8", 1, 1),
    (DType::I16, 25, "I16", 1, 2),
    (DType::I32, 26, "I32", 1, 4),
    (DType::I64, 27, "I64", 1, 8),
    (DType::F64, 28, "F64", 1, 8),
    (DType::IQ1_M, 29, "IQ1_M", 256, 56),
    (DType::BF16, 30, "BF16", 1, 2),
    (DType::TQ1_0, 34, "TQ1_0", 256, 54),
    (DType::TQ2_0, 35, "TQ2_0", 256, 66),
    (DType::MXFP4, 39, "MXFP4", 32, 17),
    (DType::NVFP4, 40, "NVFP4", 64, 36),
    (DType::Q1_0, 41, "Q1_0", 128, 18),
];

impl DType {
    /// The type with ggml's number `id`, [`DType::Unknown`] when there is none.
    pub fn from_id(id: u32) -> Self {
        TABLE.iter().find(|row| row.1 == id).map_or(Self::Unknown(id), |row| row.0)
    }

    /// The type called `name`, in either case.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.2.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    fn row(self) -> (u32, &'static str, u64, u64) {
        // Every named variant has a row (a test walks them).
        let unknown = if let Self::Unknown(id) = self { id } else { u32::MAX };
        let row = TABLE.iter().find(|row| row.0 == self);
        row.map_or((unknown, "unknown", 1, 0), |&(_, id, name, len, bytes)| (id, name, len, bytes))
    }

    /// ggml's number.
    pub fn id(self) -> u32 {
        self.row().0
    }

    /// ggml's name, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements per block; 1 for an unknown type.
    pub fn block_len(self) -> u64 {
        self.row().2
    }

    /// Bytes per block; 0 for an unknown type.
    pub fn block_bytes(self) -> u64 {
        self.row().3
    }

    /// Bytes of `elements` values, or `None` when they are no whole number of blocks or too many to count. Zero for an
    /// unknown type.
    pub fn bytes_for(self, elements: u64) -> Option<u64> {
        let blocks = elements.checked_div(self.block_len()).filter(|_| elements.is_multiple_of(self.block_len()))?;
        blocks.checked_mul(self.block_bytes())
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown(id) => write!(f, "number {id}, which has no name here"),
            known => f.write_str(known.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_own_row() {
        for (dtype, id, name, ..) in TABLE {
            assert_eq!((dtype.id(), dtype.name()), (id, name));
            assert_eq!(DType::from_id(id), dtype);
            assert_eq!(DType::from_name(&name.to_lowercase()), Some(dtype));
            assert_eq!(format!("{dtype:?}"), name);
            assert!(dtype.block_bytes() > 0);
        }
        let mut ids: Vec<u32> = TABLE.iter().map(|row| row.1).collect();
        ids.dedup();
        assert_eq!(ids.len(), TABLE.len());
        assert_eq!(DType::from_id(4), DType::Unknown(4));
        assert_eq!((DType::Unknown(4).id(), DType::Unknown(4).bytes_for(256)), (4, Some(0)));
        assert_eq!(DType::from_name("unknown"), None);
    }

    #[test]
    fn sizes() {
        assert_eq!(DType::Q4_K.bytes_for(512), Some(288));
        assert_eq!(DType::Q4_K.bytes_for(300), None);
        assert_eq!(DType::F64.bytes_for(u64::MAX), None);
    }
}
