//! Stop strings in a text that comes in pieces.

use super::config::{MAX_STOP_BYTES, MAX_STOPS, SamplerError};

/// What a piece of text led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Text that can no longer become part of a stop string.
    pub text: String,
    /// The stop string that ended the text, counted from 0 in the order given; nothing when there was none.
    pub stop: Option<usize>,
}

/// Finds the first stop string in a text and holds back exactly what may still become one.
///
/// First is the one that ends first, and the longest of those that end together: so the result depends on the text
/// alone, not on the pieces it came in. Pieces hold whole characters, as [`crate::tokenizer::Decoder`] gives them.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    held: String,
}

/// One stop string in Knuth, Morris and Pratt's automaton.
#[derive(Clone, Debug)]
struct Stop {
    text: Vec<u8>,
    /// By number of bytes matched (minus one), the length of the longest border of those bytes.
    borders: Vec<usize>,
    /// Bytes of the stop that the text so far ends with.
    matched: usize,
}

impl StopMatcher {
    /// A matcher for these strings; for none it lets everything through.
    ///
    /// # Errors
    /// [`SamplerError::Stops`] when one is empty or too long, or there are too many.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Result<Self, SamplerError> {
        let wrong = |found: String| Err(SamplerError::Stops { found });
        if stops.len() > MAX_STOPS {
            return wrong(format!("{} stop strings", stops.len()));
        }
        for (i, stop) in stops.iter().enumerate() {
            match stop.as_ref().len() {
                0 => return wrong(format!("stop string {} is empty", i + 1)),
                len if len > MAX_STOP_BYTES => return wrong(format!("stop string {} has {len} bytes", i + 1)),
                _ => {}
            }
        }
        let stops = stops.iter().map(|stop| Stop::new(stop.as_ref())).collect();
        Ok(Self { stops, held: String::new() })
    }

    /// The next piece of the text. After a stop string nothing more should be given.
    pub fn push(&mut self, piece: &str) -> Stopped {
        let before = self.held.len();
        self.held.push_str(piece);
        for (i, byte) in piece.bytes().enumerate() {
            let ended = self.stops.iter_mut().map(|stop| stop.advance(byte)).enumerate();
            // Of equals the first given.
            let longest = ended.filter_map(|(n, len)| Some((n, len?))).reduce(|a, b| if b.1 > a.1 { b } else { a });
            if let Some((n, len)) = longest {
                self.held.truncate((before + i + 1).saturating_sub(len));
                return Stopped { text: std::mem::take(&mut self.held), stop: Some(n) };
            }
        }
        let keep = self.stops.iter().map(|stop| stop.matched).max().unwrap_or_default();
        let rest = self.held.split_off(self.held.len().saturating_sub(keep));
        Stopped { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        self.stops.iter_mut().for_each(|stop| stop.matched = 0);
        std::mem::take(&mut self.held)
    }
}

impl Stop {
    fn new(text: &str) -> Self {
        let mut stop = Self { text: text.into(), borders: vec![0], matched: 0 };
        // The borders of a text are what its own automaton says when it reads the text from the second byte on.
        for byte in text.bytes().skip(1) {
            stop.advance(byte);
            stop.borders.push(stop.matched);
        }
        stop.matched = 0;
        stop
    }

    /// Reads a byte; the stop's length when that completes it.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.text.get(self.matched) != Some(&byte) {
            self.matched = self.borders.get(self.matched - 1).copied().unwrap_or_default();
        }
        if self.text.get(self.matched) == Some(&byte) {
            self.matched += 1;
        }
        (self.matched == self.text.len()).then_some(self.matched)
    }
}
