//! Questions without end: the text's own and its forms, dressed anew each time they are asked.

use crate::corpus::{Corpus, Topic};
use crate::rng::Rng;

/// How often something not known is asked.
const OFF_TOPIC_SHARE: f32 = 0.22;
/// Of the questions to decline, how many use a word that does not exist.
const INVENTED_SHARE: f32 = 0.12;
/// Of the questions to decline, how many only look as if they were about swarms.
const NEAR_SHARE: f32 = 0.25;
/// Of the questions about a topic with names, how many are a form with a name in it.
const FORM_SHARE: f32 = 0.45;
/// In the second stage, questions about something not known, and names among words in no order: what is left to go by
/// is the name, which is the point of it.
const BROAD_OFF_TOPIC_SHARE: f32 = 0.35;
const SALAD_SHARE: f32 = 0.2;
/// The most words around a name.
const SALAD_WORDS: usize = 7;
/// Words shorter than this are not misspelt.
const TYPO_MIN: usize = 5;

/// A question and the answer that it has.
pub struct Example {
    /// As a user would type it.
    pub question: String,
    /// An index into the topics; none for what is declined.
    pub topic: Option<usize>,
}

/// The source of questions.
pub struct Questions<'a> {
    corpus: &'a Corpus,
    /// Leave out every tenth question of the text, to see how the rest carries over.
    holdout: bool,
    /// The second stage of training.
    broad: bool,
}

/// Whether a question at this place of its topic is left out under `--holdout`.
pub fn held_out(index: usize) -> bool {
    index % 10 == 4
}

impl<'a> Questions<'a> {
    /// Questions from all of the corpus, or from all but every tenth; in the way of the first or the second stage.
    pub fn new(corpus: &'a Corpus, holdout: bool, broad: bool) -> Self {
        Self { corpus, holdout, broad }
    }

    /// The next question.
    pub fn draw(&self, rng: &mut Rng) -> Example {
        if rng.chance(if self.broad { BROAD_OFF_TOPIC_SHARE } else { OFF_TOPIC_SHARE }) {
            let plain = self.off_topic(rng);
            return Example { question: self.dress(plain, rng), topic: None };
        }
        let index = rng.below(self.corpus.topics.len());
        let plain = self.on_topic(&self.corpus.topics[index], rng);
        Example { question: self.dress(plain, rng), topic: Some(index) }
    }

    fn on_topic(&self, topic: &Topic, rng: &mut Rng) -> String {
        let named = !topic.one.is_empty() || !topic.many.is_empty();
        if self.broad && named && rng.chance(SALAD_SHARE) {
            let names = if topic.many.is_empty() || (!topic.one.is_empty() && rng.chance(0.6)) {
                &topic.one
            } else {
                &topic.many
            };
            return self.salad(rng.pick(names), rng);
        }
        if named && rng.chance(FORM_SHARE) {
            let plural = topic.one.is_empty() || (!topic.many.is_empty() && rng.chance(0.35));
            let (section, names) = if plural { ("many", &topic.many) } else { ("one", &topic.one) };
            return capitalise(&self.form(section, rng).replace("{x}", rng.pick(names)));
        }
        loop {
            let index = rng.below(topic.asks.len());
            if !(self.holdout && held_out(index)) {
                return topic.asks[index].clone();
            }
        }
    }

    fn form(&self, section: &str, rng: &mut Rng) -> &'a str {
        let shared = self.corpus.forms("any");
        if rng.chance(0.4) { rng.pick(shared) } else { rng.pick(self.corpus.forms(section)) }
    }

    /// A name among words that say nothing, in any order.
    fn salad(&self, name: &str, rng: &mut Rng) -> String {
        let filler = self.corpus.off_topic("filler");
        let mut words: Vec<&str> = (0..2 + rng.below(SALAD_WORDS - 1)).map(|_| rng.pick(filler)).collect();
        words.insert(rng.below(words.len() + 1), name);
        capitalise(&(words.join(" ") + "?"))
    }

    fn off_topic(&self, rng: &mut Rng) -> String {
        if self.broad && rng.chance(SALAD_SHARE) {
            const LISTS: [&str; 8] = ["thing", "product", "animal", "food", "plural", "role", "illness", "person"];
            let name = match rng.below(LISTS.len() + 3) {
                i if i < LISTS.len() => rng.pick(self.corpus.off_topic(LISTS[i])).to_owned(),
                _ => invented(rng),
            };
            return self.salad(&name, rng);
        }
        let draw = rng.unit();
        if draw < INVENTED_SHARE {
            let name = invented(rng);
            let name = if rng.chance(0.6) { format!("a {name}") } else { name };
            return capitalise(&self.form("one", rng).replace("{x}", &name));
        }
        if draw < INVENTED_SHARE + NEAR_SHARE {
            return rng.pick(self.corpus.off_topic("near")).to_owned();
        }
        if rng.chance(0.12) {
            return rng.pick(self.corpus.off_topic("plain")).to_owned();
        }
        if rng.chance(0.3) {
            let name = rng.pick(self.corpus.off_topic("thing"));
            return capitalise(&self.form("one", rng).replace("{x}", name));
        }
        self.fill(rng.pick(self.corpus.off_topic("templates")), rng)
    }

    fn fill(&self, template: &str, rng: &mut Rng) -> String {
        let mut text = template.to_owned();
        while let Some((start, end)) = text.find('{').zip(text.find('}')) {
            let value = match &text[start + 1..end] {
                "number" => (rng.below(90) + 2).to_string(),
                "invented" => invented(rng),
                list => rng.pick(self.corpus.off_topic(list)).to_owned(),
            };
            text.replace_range(start..=end, &value);
        }
        capitalise(&text)
    }

    /// The same question as another person would put it.
    fn dress(&self, plain: String, rng: &mut Rng) -> String {
        let mut text = plain;
        if rng.chance(0.35) {
            text = self.swap(&text, rng);
        }
        if rng.chance(0.06) {
            text = self.drop_word(&text, rng);
        }
        if rng.chance(0.2) {
            let stem = text.trim_end_matches(['?', '.', '!']).to_owned();
            text = stem + rng.pick(self.corpus.forms("closer"));
        }
        if rng.chance(0.3) {
            text = format!("{} {}", rng.pick(self.corpus.forms("opener")), decapitalise(&text));
        }
        if rng.chance(0.07) {
            text = typo(&text, rng);
        }
        if rng.chance(0.3) {
            text = text.to_lowercase();
        }
        if rng.chance(0.25) {
            text = text.trim_end_matches(['?', '.']).to_owned();
        }
        text
    }

    /// One of the replacements `this => that | that` of the text, if one applies.
    fn swap(&self, text: &str, rng: &mut Rng) -> String {
        let fits: Vec<_> = swaps(self.corpus).filter(|(from, _)| text.starts_with(from)).collect();
        match fits.get(rng.below(fits.len())) {
            Some((from, to)) => rng.pick(to).to_owned() + &text[from.len()..],
            None => text.to_owned(),
        }
    }

    fn drop_word(&self, text: &str, rng: &mut Rng) -> String {
        let mut words: Vec<&str> = text.split(' ').collect();
        let small = self.corpus.forms("small");
        let at: Vec<usize> =
            (0..words.len()).filter(|i| small.iter().any(|s| s.eq_ignore_ascii_case(words[*i]))).collect();
        if words.len() > 2 && !at.is_empty() {
            words.remove(at[rng.below(at.len())]);
        }
        words.join(" ")
    }

    /// Every question that is drawn before it is dressed, for the check that an evaluation question is none of them;
    /// the swaps are applied. Invented words are left out: there is no end of them.
    pub fn all_plain(&self) -> Vec<String> {
        let mut all = Vec::new();
        let forms = |section: &str| [self.corpus.forms(section), self.corpus.forms("any")].concat();
        let (one, many) = (forms("one"), forms("many"));
        let named = |forms: &[String], names: &[String]| -> Vec<String> {
            names.iter().flat_map(|name| forms.iter().map(move |form| form.replace("{x}", name))).collect()
        };
        for topic in &self.corpus.topics {
            all.extend(topic.asks.iter().cloned());
            all.extend(named(&one, &topic.one));
            all.extend(named(&many, &topic.many));
        }
        all.extend(self.corpus.off_topic("near").iter().cloned());
        all.extend(self.corpus.off_topic("plain").iter().cloned());
        all.extend(named(&one, self.corpus.off_topic("thing")));
        let finite = |template: &&String| !template.contains("{invented}");
        for template in self.corpus.off_topic("templates").iter().filter(finite) {
            self.fill_all(template, &mut all);
        }
        let swapped: Vec<String> = swaps(self.corpus)
            .flat_map(|(from, to)| {
                all.iter().filter_map(move |text| text.strip_prefix(from).map(|rest| (to.clone(), rest)))
            })
            .flat_map(|(to, rest)| to.into_iter().map(move |to| to + rest))
            .collect();
        all.extend(swapped);
        all
    }

    fn fill_all(&self, template: &str, all: &mut Vec<String>) {
        let Some((start, end)) = template.find('{').zip(template.find('}')) else {
            all.push(template.to_owned());
            return;
        };
        let list = &template[start + 1..end];
        let numbers: Vec<String> = (2..92).map(|n: u32| n.to_string()).collect();
        let values = if list == "number" { &numbers } else { self.corpus.off_topic(list) };
        for value in values {
            self.fill_all(&format!("{}{value}{}", &template[..start], &template[end + 1..]), all);
        }
    }
}

fn swaps(corpus: &Corpus) -> impl Iterator<Item = (&str, Vec<String>)> {
    corpus.forms("swap").iter().filter_map(|line| {
        let (from, to) = line.split_once("=>")?;
        Some((from.trim(), to.split('|').map(|to| to.trim().to_owned()).collect()))
    })
}

/// A word that sounds like one and is none.
fn invented(rng: &mut Rng) -> String {
    const STARTS: [&str; 20] =
        ["b", "br", "d", "dr", "f", "fl", "g", "gr", "k", "kl", "m", "n", "p", "pl", "s", "sk", "t", "tr", "v", "z"];
    const MIDDLES: [&str; 12] = ["a", "e", "i", "o", "u", "ai", "ea", "oo", "ou", "ar", "en", "il"];
    const ENDS: [&str; 12] = ["b", "ck", "d", "ff", "l", "m", "nd", "p", "rt", "sh", "st", "x"];
    let mut word = String::new();
    for _ in 0..1 + rng.below(3) {
        word += STARTS[rng.below(STARTS.len())];
        word += MIDDLES[rng.below(MIDDLES.len())];
    }
    word + ENDS[rng.below(ENDS.len())]
}

fn typo(text: &str, rng: &mut Rng) -> String {
    let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let long: Vec<usize> = (0..words.len()).filter(|i| words[*i].len() >= TYPO_MIN && words[*i].is_ascii()).collect();
    if long.is_empty() {
        return text.to_owned();
    }
    let word = &mut words[long[rng.below(long.len())]];
    let mut letters: Vec<char> = word.chars().collect();
    let at = 1 + rng.below(letters.len() - 3);
    match rng.below(3) {
        0 => letters.swap(at, at + 1),
        1 => drop(letters.remove(at)),
        _ => letters.insert(at, letters[at]),
    }
    *word = letters.into_iter().collect();
    words.join(" ")
}

fn capitalise(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Lowers the first letter, unless the word is an abbreviation or "I".
fn decapitalise(text: &str) -> String {
    let first = text.split([' ', '\'']).next().unwrap_or_default();
    if first == "I" || first.chars().filter(|c| c.is_uppercase() || c.is_numeric()).count() > 1 {
        return text.to_owned();
    }
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}
