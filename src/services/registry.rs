//! The services of this node: which are offered, at what price, and how busy they are.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use quelea_service::{Listed, MAX_LISTED, Name};
use quelea_wire::ErrorCode;
use tokio::sync::{Notify, Semaphore};

use super::service::{About, Service};
use crate::inference::InferError;

/// Of the time that a call took, the part by which it moves what is said of calls: one in eight.
const WEIGHT: u64 = 8;

/// One service.
pub(crate) struct Offered {
    pub(crate) name: Name,
    pub(super) service: Arc<dyn Service>,
    pub(super) about: About,
    enabled: AtomicBool,
    price: AtomicU64,
    pub(super) places: Semaphore,
    running: AtomicU32,
    waiting: AtomicU32,
    took_ms: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    earned: AtomicU64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Registry {
    all: RwLock<BTreeMap<Name, Arc<Offered>>>,
    /// Those that would be here if the node were told more, and what.
    absent: RwLock<BTreeMap<Name, &'static str>>,
    changed: Notify,
}

/// A count that goes down again when this is dropped.
pub(super) struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Offered {
    pub(crate) fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// In micro-credits.
    pub(crate) fn price(&self) -> u64 {
        self.price.load(Ordering::Relaxed)
    }

    /// One more call that waits, unless too many do.
    pub(super) fn wait(&self) -> Option<Counted<'_>> {
        let counted = Counted::new(&self.waiting);
        let most = u32::from(self.about.queue) + u32::from(self.about.at_once);
        let held = self.waiting.load(Ordering::Relaxed).saturating_add(self.running.load(Ordering::Relaxed));
        (held <= most).then_some(counted)
    }

    pub(super) fn begin(&self) -> Counted<'_> {
        Counted::new(&self.running)
    }

    /// A call ended well.
    pub(super) fn answered(&self, took: Duration, earned: u64) {
        let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        let before = self.took_ms.load(Ordering::Relaxed);
        let after = if before == 0 { took } else { (before * (WEIGHT - 1)).saturating_add(took).div_ceil(WEIGHT) };
        self.took_ms.store(after, Ordering::Relaxed);
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.earned.fetch_add(earned, Ordering::Relaxed);
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// When there may be a place.
    pub(super) fn retry_ms(&self) -> u32 {
        let each = self.took_ms.load(Ordering::Relaxed).max(50) / u64::from(self.about.at_once.max(1));
        let waiting = u64::from(self.waiting.load(Ordering::Relaxed)) + 1;
        u32::try_from(each.saturating_mul(waiting).clamp(50, 30_000)).unwrap_or(30_000)
    }

    /// As others are told.
    pub(crate) fn listed(&self) -> Listed {
        let narrow = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        Listed {
            name: self.name.clone(),
            version: self.about.version,
            price: self.price(),
            input_max: self.about.input_max,
            output_max: self.about.output_max,
            deadline_ms: u32::try_from(self.about.deadline.as_millis()).unwrap_or(u32::MAX),
            at_once: self.about.at_once,
            running: narrow(self.running.load(Ordering::Relaxed)),
            waiting: narrow(self.waiting.load(Ordering::Relaxed)),
            took_ms: u32::try_from(self.took_ms.load(Ordering::Relaxed)).unwrap_or(u32::MAX),
            about: self.about.about.to_owned(),
        }
    }

    /// Calls answered and failed, and micro-credits asked for them, since the node started.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let read = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (read(&self.answered), read(&self.failed), read(&self.earned))
    }
}

impl Registry {
    /// Adds a service that is not offered yet. One of the same name is replaced.
    pub(crate) fn add(&self, name: Name, service: Arc<dyn Service>) {
        let about = service.about();
        let offered = Offered {
            name: name.clone(),
            service,
            enabled: AtomicBool::new(false),
            price: AtomicU64::new(about.price),
            places: Semaphore::new(usize::from(about.at_once.max(1))),
            running: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            took_ms: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            earned: AtomicU64::new(0),
            about,
        };
        self.all.write().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::new(offered));
    }

    /// One of them, offered or not.
    pub(crate) fn get(&self, name: &Name) -> Option<Arc<Offered>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Offered>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Notes what a service that is not here wants.
    pub(super) fn absent(&self, name: Name, wants: &'static str) {
        self.absent.write().unwrap_or_else(PoisonError::into_inner).insert(name, wants);
    }

    /// One of them, offered or not.
    ///
    /// # Errors
    /// When there is none of this name; what it wants, where that is known.
    pub(crate) fn get_or_say(&self, name: &Name) -> Result<Arc<Offered>, InferError> {
        self.get(name).ok_or_else(|| {
            if let Some(wants) = self.absent.read().unwrap_or_else(PoisonError::into_inner).get(name) {
                return InferError::new(ErrorCode::ServiceUnknown, format!("{name} has nothing behind it"))
                    .hint(*wants);
            }
            let known: Vec<String> = self.all().iter().map(|offered| offered.name.to_string()).collect();
            InferError::new(ErrorCode::ServiceUnknown, format!("this node has no service {name}"))
                .hint(format!("it has {}", known.join(", ")))
        })
    }

    /// Offers one from now on, at its price so far or another.
    ///
    /// # Errors
    /// When there is none of this name.
    pub(crate) fn offer(&self, name: &Name, price: Option<u64>) -> Result<Arc<Offered>, InferError> {
        let offered = self.get_or_say(name)?;
        if let Some(price) = price {
            offered.price.store(price, Ordering::Relaxed);
        }
        offered.enabled.store(true, Ordering::Relaxed);
        self.changed.notify_one();
        Ok(offered)
    }

    /// Offers one no more. Calls under way are finished.
    ///
    /// # Errors
    /// When there is none of this name.
    pub(crate) fn withdraw(&self, name: &Name) -> Result<Arc<Offered>, InferError> {
        let offered = self.get_or_say(name)?;
        offered.enabled.store(false, Ordering::Relaxed);
        self.changed.notify_one();
        Ok(offered)
    }

    /// Asks so much from now on, in micro-credits.
    ///
    /// # Errors
    /// When there is none of this name.
    pub(crate) fn set_price(&self, name: &Name, price: u64) -> Result<Arc<Offered>, InferError> {
        let offered = self.get_or_say(name)?;
        offered.price.store(price, Ordering::Relaxed);
        Ok(offered)
    }

    /// Waits until something is offered, or no more.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What others are told: all that are offered, or one of them.
    pub(super) fn listed(&self, name: Option<&Name>) -> Vec<Listed> {
        let wanted = |offered: &&Arc<Offered>| offered.enabled() && name.is_none_or(|name| *name == offered.name);
        self.all().iter().filter(wanted).take(MAX_LISTED).map(|offered| offered.listed()).collect()
    }

    /// Calls under way or waiting.
    pub(super) fn running(&self) -> u32 {
        let of = |offered: &Arc<Offered>| {
            offered.running.load(Ordering::Relaxed).saturating_add(offered.waiting.load(Ordering::Relaxed))
        };
        self.all().iter().map(of).fold(0, u32::saturating_add)
    }
}
