//! What the scanners need to know of a character.

use std::cmp::Ordering;

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// Groups of Unicode's general category. White space comes before the category, as in llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tokenizer) enum Class {
    Space,
    Letter,
    Mark,
    Number,
    Punctuation,
    Symbol,
    Other,
}

impl Class {
    fn of(c: char) -> Self {
        if c.is_whitespace() {
            return Self::Space;
        }
        let code = u32::from(c);
        let newer = |&(first, last): &(u32, u32)| match (code < first, code > last) {
            (true, _) => Ordering::Greater,
            (_, true) => Ordering::Less,
            _ => Ordering::Equal,
        };
        if !c.is_ascii() && NEWER.binary_search_by(newer).is_ok() {
            return Self::Other;
        }
        match c.general_category_group() {
            GeneralCategoryGroup::Letter => Self::Letter,
            GeneralCategoryGroup::Mark => Self::Mark,
            GeneralCategoryGroup::Number => Self::Number,
            GeneralCategoryGroup::Punctuation => Self::Punctuation,
            GeneralCategoryGroup::Symbol => Self::Symbol,
            GeneralCategoryGroup::Separator | GeneralCategoryGroup::Other => Self::Other,
        }
    }
}

/// A character and its class.
#[derive(Clone, Copy, Debug)]
pub(in crate::tokenizer) struct Char {
    pub c: char,
    pub class: Class,
}

impl Char {
    pub fn new(c: char) -> Self {
        Self { c, class: Class::of(c) }
    }

    pub fn is(self, class: Class) -> bool {
        self.class == class
    }

    pub fn newline(self) -> bool {
        matches!(self.c, '\r' | '\n')
    }

    pub fn letter(self) -> bool {
        self.is(Class::Letter)
    }

    pub fn number(self) -> bool {
        self.is(Class::Number)
    }

    pub fn space(self) -> bool {
        self.is(Class::Space)
    }

    /// `[\p{L}\p{M}]`
    pub fn letter_or_mark(self) -> bool {
        matches!(self.class, Class::Letter | Class::Mark)
    }

    /// `[\p{P}\p{S}]`
    pub fn punctuation_or_symbol(self) -> bool {
        matches!(self.class, Class::Punctuation | Class::Symbol)
    }

    /// `[^\s\p{L}\p{N}]`
    pub fn other(self) -> bool {
        !matches!(self.class, Class::Space | Class::Letter | Class::Number)
    }

    /// `[^\s\p{L}\p{M}\p{N}]`
    pub fn other_than_mark(self) -> bool {
        self.other() && !self.is(Class::Mark)
    }

    /// Whether the character lies in one of the ranges, which are in order.
    pub fn within(self, ranges: &[(char, char)]) -> bool {
        let at = ranges.partition_point(|(first, _)| *first <= self.c);
        at > 0 && ranges.get(at - 1).is_some_and(|(_, last)| self.c <= *last)
    }
}

/// What Unicode has assigned since version 15.0. The models in use were trained before, with tables in which these
/// have no category, and so has llama.cpp; a newer table must not cut their words differently. The ranges may span
/// what is still unassigned.
const NEWER: &[(u32, u32)] = &[
    (0x558, 0x558),
    (0x58b, 0x58c),
    (0x5c8, 0x5c9),
    (0x88f, 0x897),
    (0xb53, 0xb54),
    (0xc5c, 0xc5c),
    (0xcdc, 0xcdc),
    (0x1acf, 0x1af0),
    (0x1b4e, 0x1b4f),
    (0x1b7f, 0x1b7f),
    (0x1c89, 0x1c8a),
    (0x208f, 0x208f),
    (0x209d, 0x209f),
    (0x20c1, 0x20c4),
    (0x2427, 0x2429),
    (0x2b96, 0x2b96),
    (0x2e60, 0x2e63),
    (0x31e4, 0x31e5),
    (0xa7cb, 0xa7cf),
    (0xa7d2, 0xa7d2),
    (0xa7d4, 0xa7d4),
    (0xa7da, 0xa7f1),
    (0xab6c, 0xab6d),
    (0xfbc3, 0xfbd2),
    (0xfd90, 0xfd91),
    (0xfdc8, 0xfdce),
    (0x1_05c0, 0x1_05f3),
    (0x1_07bb, 0x1_07bf),
    (0x1_0940, 0x1_0959),
    (0x1_0d40, 0x1_0d8f),
    (0x1_0ec2, 0x1_0efc),
    (0x1_1380, 0x1_13e2),
    (0x1_16d0, 0x1_16e3),
    (0x1_1b0a, 0x1_1bf9),
    (0x1_1db0, 0x1_1df1),
    (0x1_1f5a, 0x1_1f5a),
    (0x1_246f, 0x1_246f),
    (0x1_2475, 0x1_247f),
    (0x1_2550, 0x1_2686),
    (0x1_3460, 0x1_43fa),
    (0x1_6100, 0x1_6139),
    (0x1_6d40, 0x1_6d79),
    (0x1_6ea0, 0x1_6ed3),
    (0x1_6ff2, 0x1_6ff6),
    (0x1_87f8, 0x1_87ff),
    (0x1_8cd6, 0x1_8cff),
    (0x1_8d09, 0x1_91d2),
    (0x1_b123, 0x1_b128),
    (0x1_b168, 0x1_b168),
    (0x1_cc00, 0x1_cefd),
    (0x1_d127, 0x1_d128),
    (0x1_d1eb, 0x1_d1ff),
    (0x1_d250, 0x1_d281),
    (0x1_d6a6, 0x1_d6a6),
    (0x1_db00, 0x1_db1c),
    (0x1_df1f, 0x1_df24),
    (0x1_df2b, 0x1_dfff),
    (0x1_e5d0, 0x1_e6ff),
    (0x1_f1ae, 0x1_f1ae),
    (0x1_f6d8, 0x1_f6d9),
    (0x1_f777, 0x1_f77a),
    (0x1_f7da, 0x1_f7db),
    (0x1_f7f1, 0x1_f7ff),
    (0x1_f8b2, 0x1_f8d8),
    (0x1_fa54, 0x1_fa57),
    (0x1_fa89, 0x1_fa8f),
    (0x1_fabe, 0x1_fabe),
    (0x1_fac6, 0x1_facd),
    (0x1_fadc, 0x1_fadf),
    (0x1_fae9, 0x1_faef),
    (0x1_faf9, 0x1_fafa),
    (0x1_fbcb, 0x1_fbef),
    (0x1_fbfa, 0x1_fbfa),
    (0x2_b73a, 0x2_b73f),
    (0x2_b81e, 0x2_b81e),
    (0x2_cea2, 0x2_cead),
    (0x3_23b0, 0x3_fc3f),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_are_in_order() {
        assert!(NEWER.iter().all(|(first, last)| first <= last));
        assert!(NEWER.windows(2).all(|pair| pair[0].1 < pair[1].0));
        assert_eq!(Class::of('\u{1c89}'), Class::Other, "a letter since Unicode 16");
        assert_eq!(Class::of('\u{1c88}'), Class::Letter);
    }

    #[test]
    fn ranges_hold_their_ends() {
        let ranges = [('b', 'd'), ('x', 'x')];
        let held: String = ('a'..='z').filter(|c| Char::new(*c).within(&ranges)).collect();
        assert_eq!(held, "bcdx");
    }
}
