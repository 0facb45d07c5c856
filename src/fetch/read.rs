//! Readable text of a page: fetched by the rules of this module, and made text by a worker, as HTML of strangers is no business of
//! this process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::FutureExt as _;
use serde::Serialize;
use url::Url;

use super::{
    BODY_MAX, FetchError, Limits, TIME_MAX,
    client::{FetchRequest, Fetched, Web},
    robots::Rules,
};
use crate::agents::{
    End, Sandbox,
    worker::{Order, pages},
};

/// Text of a page at most, and what is given unless more or less is asked for.
pub(crate) const TEXT_MAX: usize = 256 << 10;
pub(crate) const TEXT: usize = 64 << 10;

/// How long making text of a page may take.
const PARSING: Duration = Duration::from_secs(5);

/// The longest file of rules that is read, as RFC 9309 asks at least.
const ROBOTS_MAX: usize = 500 << 10;

/// Rules of so many sites are remembered, for so long.
const SITES: usize = 256;
const REMEMBERED: Duration = Duration::from_secs(600);

/// A page, read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PageText {
    /// Where it was in the end.
    pub(crate) url: String,
    pub(crate) status: u16,
    pub(crate) title: String,
    pub(crate) text: String,
    pub(crate) links: Vec<pages::Link>,
    /// Whether there was more, of the page or of its text.
    pub(crate) cut: bool,
}

/// What sites ask, by origin, and since when it is known.
type Sites = HashMap<String, (Instant, Arc<Rules>)>;

/// Reads pages. Clones share what they know of sites.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    web: Web,
    sandbox: Sandbox,
    sites: Arc<Mutex<Sites>>,
}

impl Reader {
    pub(crate) fn new(web: Web, sandbox: Sandbox) -> Self {
        Self { web, sandbox, sites: Arc::default() }
    }

    /// Reads a page; at most so many bytes of text.
    ///
    /// # Errors
    /// When it may not be fetched, cannot be, or is no text.
    pub(crate) async fn read(&self, url: &str, max_bytes: usize) -> Result<PageText, FetchError> {
        let limits = Limits { body: BODY_MAX, cut: true, ..Limits::default() };
        self.read_within(url, max_bytes, &limits).await
    }

    pub(super) async fn read_within(
        &self,
        url: &str,
        max_bytes: usize,
        limits: &Limits,
    ) -> Result<PageText, FetchError> {
        // Checked before the site's rules are asked for: what is refused is refused at once.
        let target = super::guard::target(url, limits)?;
        self.may(&target.url, limits).await?;
        let accept = ("accept".to_owned(), "text/html,application/xhtml+xml,text/plain;q=0.9".to_owned());
        let request = FetchRequest { url: url.to_owned(), headers: [accept].into(), ..FetchRequest::default() };
        // A redirect may lead to a page that another site's rules are about.
        let may = |next: Url| async move { self.may(&next, limits).await }.boxed();
        let fetched = self.web.fetch_if(&request, None, limits, &may).await?;
        self.made_text(fetched, max_bytes.min(TEXT_MAX)).await
    }

    async fn made_text(&self, fetched: Fetched, max_bytes: usize) -> Result<PageText, FetchError> {
        let kind = fetched.headers.get("content-type").map_or("text/html", String::as_str);
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let html = matches!(kind.as_str(), "text/html" | "application/xhtml+xml");
        if !html && !kind.starts_with("text/") && !matches!(kind.as_str(), "application/json" | "application/xml") {
            return Err(FetchError::Kind(kind.chars().filter(|c| !c.is_control()).take(64).collect()));
        }
        let order = Order::Read(pages::Page { url: fetched.url.clone(), html, max_bytes });
        let run = self.sandbox.other(&order, &fetched.body, PARSING).await?;
        let text: pages::Text = match run.end {
            End::Ok => serde_json::from_slice(&run.output).map_err(|e| FetchError::Page(e.to_string()))?,
            End::Failed(said) | End::Trapped(said) | End::Refused(said) => return Err(FetchError::Page(said)),
            End::OutOfFuel | End::Timeout => return Err(FetchError::Slow(PARSING)),
        };
        Ok(PageText {
            url: fetched.url,
            status: fetched.status,
            title: text.title,
            text: text.text,
            links: text.links,
            cut: text.cut || fetched.cut,
        })
    }

    /// Whether a site lets programs read this page.
    async fn may(&self, url: &Url, limits: &Limits) -> Result<(), FetchError> {
        let origin = url.origin().ascii_serialization();
        let rules = match self.remembered(&origin) {
            Some(rules) => rules,
            None => {
                let rules = Arc::new(self.rules(&origin, limits).await?);
                self.remember(origin, rules.clone());
                rules
            }
        };
        let path = &url[url::Position::BeforePath..];
        if rules.allow(path) {
            return Ok(());
        }
        let host = url.host_str().unwrap_or_default().to_owned();
        Err(FetchError::Robots { host, path: path.chars().take(200).collect() })
    }

    /// A site that has no rules allows everything; one that fails to give them, nothing.
    async fn rules(&self, origin: &str, limits: &Limits) -> Result<Rules, FetchError> {
        let limits = Limits { body: ROBOTS_MAX, cut: true, time: limits.time.min(TIME_MAX / 2), ..limits.clone() };
        let request = FetchRequest { url: format!("{origin}/robots.txt"), ..FetchRequest::default() };
        match self.web.fetch(&request, None, &limits).await {
            Ok(fetched) if fetched.status < 300 => Ok(Rules::parse(&String::from_utf8_lossy(&fetched.body))),
            Ok(fetched) if fetched.status < 500 => Ok(Rules::default()),
            // Whoever is sent round in circles finds no rules either.
            Err(FetchError::Redirects) => Ok(Rules::default()),
            Ok(_) => Ok(Rules::nothing()),
            // The page would not come either; that it cannot is what is said.
            Err(error) => Err(error),
        }
    }

    fn remembered(&self, origin: &str) -> Option<Arc<Rules>> {
        let sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        sites.get(origin).filter(|(at, _)| at.elapsed() < REMEMBERED).map(|(_, rules)| rules.clone())
    }

    fn remember(&self, origin: String, rules: Arc<Rules>) {
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        sites.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
        // Full: the oldest goes.
        if sites.len() >= SITES
            && let Some(oldest) = sites.iter().min_by_key(|(_, (at, _))| *at).map(|(origin, _)| origin.clone())
        {
            sites.remove(&oldest);
        }
        sites.insert(origin, (Instant::now(), rules));
    }
}
