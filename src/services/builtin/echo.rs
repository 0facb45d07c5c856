//! `echo`: gives back what it is given. For trying out the way to a peer, its ledger included.

use std::time::Duration;

use futures::future::BoxFuture;
use quelea_service::Fault;

use super::MILLI;
use crate::services::service::{About, Done, Job, Progress, Service};

/// Bytes that it takes.
const MOST: u32 = 64 << 10;

pub(super) struct Echo;

impl Service for Echo {
    fn about(&self) -> About {
        About {
            version: 1,
            price: MILLI,
            input_max: MOST,
            output_max: MOST,
            deadline: Duration::from_secs(10),
            at_once: 64,
            queue: 192,
            about: "Gives back what it is given",
        }
    }

    fn call<'a>(&'a self, job: Job, _: &'a Progress) -> BoxFuture<'a, Result<Done, Fault>> {
        Box::pin(async move { Ok(job.input.into()) })
    }
}
