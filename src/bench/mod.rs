//! Measurements that `quelea bench` prints. Each says how it was made, and sets its figure beside a plain one of the same
//! run: machines differ and are shared, ratios travel.

pub(crate) mod agent;
pub(crate) mod chain;
pub(crate) mod hop;
pub(crate) mod ledger;
pub(crate) mod masking;
pub(crate) mod model;
