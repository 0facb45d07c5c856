//! Readable text of a web page: HTML of strangers is parsed in a worker, for the same reasons for which their modules run in
//! one.

use serde::{Deserialize, Serialize};

use super::runtime::{Ended, Ran};

/// A page whose bytes follow.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Page {
    /// Where it was in the end, after redirects.
    pub(crate) url: String,
    /// Whether it is HTML; else it is text as it is.
    pub(crate) html: bool,
    /// Bytes of text at most.
    pub(crate) max_bytes: usize,
}

/// What is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Text {
    pub(crate) title: String,
    pub(crate) text: String,
    pub(crate) links: Vec<Link>,
    /// Whether there was more text.
    pub(crate) cut: bool,
}

/// A link of a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) url: String,
    pub(crate) text: String,
}

/// Columns of text; lines are for people and models, not for terminals.
const WIDTH: usize = 100;
/// Links of one page.
const LINKS: usize = 200;
/// Characters of a title, or of a link's words.
const WORDS: usize = 300;
/// The longest address of a link that is kept.
const URL: usize = 2_048;

/// Reads a page.
pub(super) fn read(page: &Page, bytes: &[u8]) -> Ran {
    let body = String::from_utf8_lossy(bytes);
    let text = if page.html { of_html(page, &body) } else { Ok(Text { text: clean(&body), ..Text::default() }) };
    match text.map(|text| within(text, page.max_bytes)) {
        Ok(text) => match serde_json::to_vec(&text) {
            Ok(output) => Ran { ended: Ended::Ok, fuel: 0, message: String::new(), output },
            Err(error) => Ran::refused(error.to_string()),
        },
        Err(said) => Ran { ended: Ended::Failed, fuel: 0, message: said, output: Vec::new() },
    }
}

fn of_html(page: &Page, body: &str) -> Result<Text, String> {
    use dom_smoothie::{Config, Readability};
    let config = Config { max_elements_to_parse: 50_000, ..Config::default() };
    let mut reading = Readability::new(body, Some(&page.url), Some(config)).map_err(|e| e.to_string())?;
    let links = links(&reading, &page.url);
    let heading = reading.get_article_title().to_string();
    // Where no article is found in it, the whole page is the text.
    let (title, content) = match reading.parse() {
        Ok(article) => (article.title, article.content.to_string()),
        Err(_) => (heading, body.to_owned()),
    };
    let text = html2text::config::plain_no_decorate()
        .string_from_read(content.as_bytes(), WIDTH)
        .map_err(|e| format!("the page cannot be made text: {e}"))?;
    Ok(Text { title: first(&clean(&title), WORDS), text: clean(&text), links, cut: false })
}

/// Links to pages, each once.
fn links(reading: &dom_smoothie::Readability, base: &str) -> Vec<Link> {
    let Ok(base) = url::Url::parse(base) else { return Vec::new() };
    let mut found: Vec<Link> = Vec::new();
    for anchor in reading.doc.select("a[href]").iter() {
        if found.len() >= LINKS {
            break;
        }
        let Some(url) = anchor.attr("href").and_then(|href| base.join(&href).ok()) else { continue };
        let url = String::from(url);
        if !matches!(url.split_once(':'), Some(("http" | "https", _)))
            || url.len() > URL
            || found.iter().any(|link| link.url == url)
        {
            continue;
        }
        let words = anchor.text();
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        found.push(Link { url, text: first(&clean(&words), WORDS) });
    }
    found
}

/// No control characters but line breaks and tabs: text of strangers goes to terminals.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

fn first(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

fn within(mut text: Text, most: usize) -> Text {
    if text.text.len() > most {
        let end = (0..=most).rev().find(|at| text.text.is_char_boundary(*at)).unwrap_or(0);
        text.text.truncate(end);
        text.cut = true;
    }
    text
}
