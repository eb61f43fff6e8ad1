//! The end of a job: all that it made goes, whatever state it is in (section 15). It is
//! idempotent, goes on past what fails, and says what is left.

use std::{collections::BTreeSet, time::Duration};

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::{serve::Shared, target::encode};

/// How often the engine is asked whether there are more containers: some were being made.
const ROUNDS: usize = 5;
/// How long one removal may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Removes containers, networks, volumes and images, and says what is left.
pub(super) async fn all(shared: &Shared) -> Vec<String> {
    let mut left = Vec::new();
    containers(shared, &mut left).await;
    networks(shared, &mut left).await;
    volumes(shared, &mut left).await;
    if shared.settings.images.remove {
        images(shared).await;
    }
    left
}

/// A request whose answer hardly matters: its status and value.
async fn ask(
    shared: &Shared,
    method: Method,
    path: &str,
    query: &[(&str, &str)],
    body: Option<Value>,
) -> Result<(StatusCode, Value), String> {
    let asked = shared.engine.json(&method, path, query, body.as_ref());
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the engine takes too long".to_owned()),
    }
}

/// Whether something is gone after such an answer; why not, otherwise.
fn gone(answer: Result<(StatusCode, Value), String>) -> Result<(), String> {
    match answer {
        Ok((status, _)) if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
        Ok((_, value))
            if value["message"].as_str().is_some_and(|m| m.contains("already in progress")) =>
        {
            Ok(())
        }
        Ok((status, value)) => Err(value["message"].as_str().unwrap_or(status.as_str()).to_owned()),
        Err(error) => Err(error),
    }
}

/// The filter for all labels of this guard. The further ones count, too: a container of another
/// job whose image this job built has this job's identity from that image, but its own job's
/// labels.
fn filters(shared: &Shared) -> String {
    let labels = shared.settings.all_labels();
    let labels: Vec<String> =
        labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    json!({ "label": labels }).to_string()
}

async fn containers(shared: &Shared, left: &mut Vec<String>) {
    let filters = filters(shared);
    let own: Vec<String> = {
        let owned = shared.owned();
        owned.containers().filter(|(_, c)| !c.is_self).map(|(id, _)| id.to_owned()).collect()
    };
    let mut ids: BTreeSet<String> = own.into_iter().collect();
    let mut failed = Vec::new();
    for _ in 0..ROUNDS {
        match ask(
            shared,
            Method::GET,
            "/containers/json",
            &[("all", "1"), ("filters", &filters)],
            None,
        )
        .await
        {
            Ok((StatusCode::OK, list)) => ids.extend(
                list.as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|c| Some(c["Id"].as_str()?.to_owned())),
            ),
            Ok((status, _)) => failed.push(format!("containers: the engine answered {status}")),
            Err(error) => failed.push(format!("containers: {error}")),
        }
        if ids.is_empty() {
            break;
        }
        failed.clear();
        for id in std::mem::take(&mut ids) {
            if let Err(error) = container(shared, &id).await {
                failed.push(format!("container {id}: {error}"));
                ids.insert(id);
            } else {
                drop(shared.change(|owned| owned.forget_container(&id)));
            }
        }
    }
    left.extend(failed);
}

async fn container(shared: &Shared, id: &str) -> Result<(), String> {
    let path = format!("/containers/{id}");
    let remove = || ask(shared, Method::DELETE, &path, &[("force", "1"), ("v", "1")], None);
    let first = gone(remove().await);
    if first.is_ok() {
        return first;
    }
    // Paused, or started again by its policy meanwhile.
    let policy = json!({ "RestartPolicy": { "Name": "no" } });
    drop(ask(shared, Method::POST, &format!("{path}/update"), &[], Some(policy)).await);
    drop(ask(shared, Method::POST, &format!("{path}/unpause"), &[], None).await);
    drop(ask(shared, Method::POST, &format!("{path}/kill"), &[], None).await);
    gone(remove().await)
}

async fn networks(shared: &Shared, left: &mut Vec<String>) {
    let mut ids: BTreeSet<String> =
        shared.owned().networks().map(|(id, _)| id.to_owned()).collect();
    let listed =
        ask(shared, Method::GET, "/networks", &[("filters", &filters(shared))], None).await;
    if let Ok((StatusCode::OK, list)) = listed {
        ids.extend(
            list.as_array()
                .into_iter()
                .flatten()
                .filter_map(|n| Some(n["Id"].as_str()?.to_owned())),
        );
    }
    if shared.made_network {
        ids.insert(shared.ground.network_id.clone());
    }
    for id in ids {
        let path = format!("/networks/{id}");
        if gone(ask(shared, Method::DELETE, &path, &[], None).await).is_ok() {
            continue;
        }
        // Something of the runner's is still in it.
        let details = ask(shared, Method::GET, &path, &[], None).await;
        let inside =
            details.ok().and_then(|(_, mut network)| Some(network.get_mut("Containers")?.take()));
        for container in
            inside.as_ref().and_then(Value::as_object).into_iter().flat_map(|m| m.keys())
        {
            let body = json!({ "Container": container, "Force": true });
            drop(ask(shared, Method::POST, &format!("{path}/disconnect"), &[], Some(body)).await);
        }
        if let Err(error) = gone(ask(shared, Method::DELETE, &path, &[], None).await) {
            left.push(format!("network {id}: {error}"));
        }
    }
}

async fn volumes(shared: &Shared, left: &mut Vec<String>) {
    let mut names: BTreeSet<String> = shared.owned().volumes().map(str::to_owned).collect();
    let listed = ask(shared, Method::GET, "/volumes", &[("filters", &filters(shared))], None).await;
    if let Ok((StatusCode::OK, list)) = listed {
        let found = list["Volumes"].as_array().into_iter().flatten();
        names.extend(found.filter_map(|volume| Some(volume["Name"].as_str()?.to_owned())));
    }
    for name in names {
        let path = format!("/volumes/{}", encode(&name));
        if let Err(error) = gone(ask(shared, Method::DELETE, &path, &[("force", "1")], None).await)
        {
            left.push(format!("volume {name}: {error}"));
        }
    }
}

/// Tags that the job made, then images that only it had. What others use meanwhile stays.
async fn images(shared: &Shared) {
    let owned = shared.owned();
    for (name, _) in owned.tags().filter(|(_, tag)| tag.made) {
        drop(ask(shared, Method::DELETE, &format!("/images/{name}"), &[], None).await);
    }
    let pulled: BTreeSet<&str> =
        owned.tags().filter(|(_, tag)| !tag.made).map(|(_, tag)| &*tag.id).collect();
    for id in owned.images().filter(|id| !pulled.contains(id)) {
        let path = format!("/images/{id}");
        let Ok((StatusCode::OK, details)) =
            ask(shared, Method::GET, &format!("{path}/json"), &[], None).await
        else {
            continue;
        };
        // A tag or a digest is somebody else's use of it.
        let used = |name: &str| details[name].as_array().is_some_and(|list| !list.is_empty());
        if !used("RepoTags") && !used("RepoDigests") {
            drop(ask(shared, Method::DELETE, &path, &[], None).await);
        }
    }
}
