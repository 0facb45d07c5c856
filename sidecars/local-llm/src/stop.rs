//! Where an answer ends because the request says so.

/// Looks for the strings that end an answer. Text that may be the beginning of one is held back until it is known.
#[derive(Debug, Default)]
pub(crate) struct Stops {
    strings: Vec<String>,
    held: String,
}

impl Stops {
    pub(crate) fn new(strings: Vec<String>) -> Self {
        Self { strings, held: String::new() }
    }

    /// Takes more of the answer; gives what can be told of it, and whether it ends here.
    pub(crate) fn take(&mut self, more: &str) -> (String, bool) {
        self.held.push_str(more);
        if let Some(at) = self.strings.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begun = |from: usize| {
            let rest = self.held.get(from..).unwrap_or_default();
            self.strings.iter().any(|stop| stop.starts_with(rest))
        };
        let keep = self.held.char_indices().map(|(at, _)| at).find(|at| begun(*at)).unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when no more comes.
    pub(crate) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told when `text` comes in pieces of so many characters, and whether it ended.
    fn told(text: &str, stops: &[&str], size: usize) -> (String, bool) {
        let mut looked = Stops::new(stops.iter().map(ToString::to_string).collect());
        let (mut all, letters) = (String::new(), text.chars().collect::<Vec<_>>());
        for piece in letters.chunks(size) {
            let (text, ended) = looked.take(&piece.iter().collect::<String>());
            all.push_str(&text);
            if ended {
                return (all, true);
            }
        }
        all.push_str(&looked.rest());
        (all, false)
    }

    #[test]
    fn an_answer_ends_before_the_first_of_its_stops_however_it_is_cut() {
        for (text, stops, wanted) in [
            ("one, two, three", &[", t"][..], ("one", true)),
            ("one, two, three", &["three", "two"], ("one, ", true)),
            ("one, two, thr", &["three"], ("one, two, thr", false)),
            ("aaab", &["aab"], ("a", true)),
            ("Käse – und Wein", &["– u"], ("Käse ", true)),
            ("Käse – ", &["– und"], ("Käse – ", false)),
            ("nothing stops this", &[], ("nothing stops this", false)),
        ] {
            for size in 1..=text.chars().count() {
                assert_eq!(told(text, stops, size), (wanted.0.to_owned(), wanted.1), "{text:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn only_what_may_be_a_beginning_is_held_back() {
        let mut stops = Stops::new(vec!["END".into()]);
        assert_eq!(stops.take("the E"), ("the ".into(), false));
        assert_eq!(stops.take("N"), (String::new(), false));
        assert_eq!(stops.take("T"), ("ENT".into(), false));
    }
}
