//! `GET /v1/models` and `/v1/models/{id}`, and which model a request means.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
};
use quelea_announce::State as Ready;
use quelea_wire::{ModelId, Profile, SpanRange};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiError, ApiState};
use crate::{
    api::shape::answers,
    inference::{
        InferError,
        models::{DEMO, Ends},
    },
    weights::{fetch::blocking, store::Store},
};

/// Models that are told of at most: of a swarm that announces more, those with the lowest ids.
const MAX_MODELS: usize = 1024;

/// A model as a request means it.
pub(super) struct AskedModel {
    /// What a request of ours calls it.
    pub(super) reference: String,
    pub(super) id: String,
    pub(super) ends: Arc<Ends>,
}

/// Whether a model can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    /// All of its layers are served.
    Loaded,
    /// They will be when those are ready that load some.
    Loading,
    Unavailable,
}

impl Status {
    fn text(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Loading => "loading",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A model that this node has heard of.
struct Known {
    id: ModelId,
    /// What its maker calls it, where a file of it is here.
    name: Option<String>,
    layers: u16,
    status: Status,
    /// Peers that serve some of it, this node among them.
    peers: usize,
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Whether those are told of, too, that cannot be asked now.
    #[serde(default)]
    all: bool,
}

answers! {
    OpenAiModels { object: String, data: Vec<OpenAiModel>, }

    /// `status` is `loaded`, `loading` or `unavailable`.
    OpenAiModel { id: String, object: String, created: u64, owned_by: String, status: String, meta: OpenAiModelMeta, }

    OpenAiModelMeta { model: String, layers: u32, peers: u32, }
}

/// The models that can be asked now.
#[utoipa::path(get, path = "/v1/models", params(Which), responses((status = 200, body = OpenAiModels)))]
pub(super) async fn list(
    State(state): State<ApiState>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(Which { all }) = which.map_err(|wrong| ApiError::invalid(wrong.body_text()))?;
    let known = known(&state).await?;
    let shown = known.iter().filter(|model| all || model.status == Status::Loaded);
    let data: Vec<Value> = shown.map(|model| described(&known, model, state.openai.since)).collect();
    Ok(Json(json!({ "object": "list", "data": data })))
}

/// One model; its id may have slashes.
#[utoipa::path(
    get, path = "/v1/models/{id}", params(("id" = String, Path, description = "its name or its id")),
    responses((status = 200, body = OpenAiModel), (status = 404, description = "there is none"))
)]
pub(super) async fn one(State(state): State<ApiState>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let known = known(&state).await?;
    let model = find(&known, &id).ok_or_else(|| ApiError::no_model(&id))?;
    Ok(Json(described(&known, model, state.openai.since)))
}

/// What a model is asked by: its name where that is plain, else its id.
fn public_id(known: &[Known], model: &Known) -> String {
    let named = |name: &str| known.iter().filter(|other| other.name.as_deref() == Some(name)).count();
    let plain = |name: &&String| {
        let chars = |c: char| c.is_ascii_alphanumeric() || "-_.:/ ".contains(c);
        name.chars().all(chars) && !name.trim().is_empty() && name.parse::<ModelId>().is_err()
    };
    match model.name.as_ref().filter(plain) {
        Some(name) if named(name) == 1 => name.clone(),
        _ => model.id.to_string(),
    }
}

fn find<'a>(known: &'a [Known], id: &str) -> Option<&'a Known> {
    let by_id = id.parse::<ModelId>().ok();
    known.iter().find(|model| by_id == Some(model.id) || public_id(known, model) == id)
}

fn described(known: &[Known], model: &Known, created: u64) -> Value {
    json!({
        "id": public_id(known, model),
        "object": "model",
        "created": created,
        "owned_by": "quelea",
        "status": model.status.text(),
        "meta": { "model": model.id.to_string(), "layers": model.layers, "peers": model.peers },
    })
}

/// The model that a request names, with what is needed here to ask it.
pub(super) async fn open(state: &ApiState, name: &str) -> Result<AskedModel, ApiError> {
    let reference = if name == DEMO || name.parse::<ModelId>().is_ok() {
        name.to_owned()
    } else {
        // Nothing else is a name here: files of this machine are opened for its own user only.
        let known = known(state).await?;
        find(&known, name).ok_or_else(|| ApiError::no_model(name))?.id.to_string()
    };
    let ends = state.asker.models.ends(&reference).await.map_err(|error| ApiError::from(&error))?;
    Ok(AskedModel { reference, id: ends.file.id.to_string(), ends })
}

/// All models that this node has heard of.
async fn known(state: &ApiState) -> Result<Vec<Known>, ApiError> {
    let failed = |error: InferError| ApiError::from(&error);
    let mut found: BTreeMap<ModelId, Known> = BTreeMap::new();
    let add = |id: ModelId, name: Option<String>, layers: u16, found: &mut BTreeMap<ModelId, Known>| {
        if found.len() < MAX_MODELS || found.contains_key(&id) {
            let status = Status::Unavailable;
            let model = found.entry(id).or_insert(Known { id, name: None, layers, status, peers: 0 });
            model.name = model.name.take().or(name);
        }
    };
    let demo = state.asker.models.demo().await.map_err(failed)?;
    add(demo, Some(DEMO.into()), 0, &mut found);
    for served in state.asker.plane.served() {
        let name = served.file.manifest.name.clone();
        add(served.file.id, Some(name), served.file.layers(), &mut found);
    }
    let shelf = state.asker.models.puller().shelf.clone();
    let stored = blocking(move || {
        let ids = shelf.store().map(Store::ids).unwrap_or_default();
        ids.into_iter().filter_map(|id| shelf.kept(id).ok().flatten()).collect::<Vec<_>>()
    });
    for kept in stored.await.map_err(failed)? {
        let layers = u16::try_from(kept.manifest.n_layers).unwrap_or(u16::MAX);
        add(kept.id, Some(kept.manifest.name.clone()), layers, &mut found);
    }
    state.openai.ask_around(&state.asker.plane.handle).await;
    let mut heard = state.asker.plane.handle.announced().await;
    let here = state.asker.plane.handle.local();
    heard.retain(|signed| signed.peer() != here);
    heard.extend(state.asker.own.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone());
    let mut spans: BTreeMap<ModelId, Vec<(Profile, Ready, SpanRange)>> = BTreeMap::new();
    for offer in heard.iter().flat_map(|signed| &signed.announcement().offers) {
        add(offer.model, None, offer.layers_total, &mut found);
        let Some(model) = found.get_mut(&offer.model) else { continue };
        model.peers += 1;
        model.layers = model.layers.max(offer.layers_total);
        spans.entry(offer.model).or_default().push((offer.profile, offer.state, offer.span));
    }
    for model in found.values_mut() {
        let offers = spans.get(&model.id).map(Vec::as_slice).unwrap_or_default();
        model.status = status(offers, model.layers);
    }
    Ok(found.into_values().collect())
}

/// Whether the layers that are offered with one profile are all there are.
fn status(offers: &[(Profile, Ready, SpanRange)], layers: u16) -> Status {
    let covers = |profile: Profile, states: &[Ready]| {
        let mut spans: Vec<SpanRange> = offers
            .iter()
            .filter(|(with, state, _)| *with == profile && states.contains(state))
            .map(|(.., span)| *span)
            .collect();
        spans.sort_by_key(|span| span.start());
        let end = spans.iter().fold(0, |end, span| if span.start() <= end { span.end().max(end) } else { end });
        layers > 0 && end >= layers
    };
    let any = |states: &[Ready]| offers.iter().any(|(profile, ..)| covers(*profile, states));
    if any(&[Ready::Ready]) {
        Status::Loaded
    } else if any(&[Ready::Ready, Ready::Loading]) {
        Status::Loading
    } else {
        Status::Unavailable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_loaded_when_all_its_layers_are() {
        let span = |start, end| SpanRange::new(start, end).unwrap();
        let (exact, other) = (Profile::Exact, Profile::ExactBf16);
        let offer = |profile, state, start, end| (profile, state, span(start, end));
        let whole = [offer(exact, Ready::Ready, 2, 6), offer(exact, Ready::Ready, 0, 3)];
        assert_eq!(status(&whole, 6), Status::Loaded);
        assert_eq!(status(&whole, 7), Status::Unavailable);
        assert_eq!(status(&[], 0), Status::Unavailable);
        let loading = [offer(exact, Ready::Loading, 2, 6), offer(exact, Ready::Ready, 0, 3)];
        assert_eq!(status(&loading, 6), Status::Loading);
        let mixed = [offer(exact, Ready::Ready, 0, 3), offer(other, Ready::Ready, 3, 6)];
        assert_eq!(status(&mixed, 6), Status::Unavailable);
        let gap = [offer(exact, Ready::Ready, 0, 2), offer(exact, Ready::Ready, 3, 6)];
        assert_eq!(status(&gap, 6), Status::Unavailable);
    }

    #[test]
    fn names_that_two_models_have_are_no_names() {
        let model = |n: u8, name: Option<&str>| Known {
            id: ModelId([n; 32]),
            name: name.map(str::to_owned),
            layers: 1,
            status: Status::Loaded,
            peers: 1,
        };
        let known = [
            model(1, Some("org/a")),
            model(2, Some("twin")),
            model(3, Some("twin")),
            model(4, Some("a\nb")),
            model(5, None),
        ];
        let ids: Vec<String> = known.iter().map(|model| public_id(&known, model)).collect();
        assert_eq!(ids[0], "org/a");
        assert!(ids[1..].iter().all(|id| id.parse::<ModelId>().is_ok()), "{ids:?}");
        assert_eq!(find(&known, "org/a").unwrap().id, known[0].id);
        assert_eq!(find(&known, &ids[2]).unwrap().id, known[2].id);
        assert!(find(&known, "twin").is_none());
    }
}
