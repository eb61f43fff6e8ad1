//! Removal of what a job made. It carries on past errors, and does not mind what is gone already.

use std::{collections::BTreeMap, time::Duration};

use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListNetworksOptionsBuilder, ListVolumesOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveVolumeOptions,
};
use futures_util::future;
use tokio::time::sleep;

use crate::{
    base::ids::JobId,
    executor::docker::engine::{Engine, Error},
    ledger::Resource,
    workload::{
        NetworkPlan, Workload,
        mount::LAYERS_TYPE,
        names::{INSTANCE_LABEL, LABEL_PREFIX},
    },
};

use super::spec;

/// How often the removal of something in use is tried, and the pause between two tries: the engine
/// needs a moment to let go of a network or volume after its last container.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// Looks for what was made late, and the pause before each.
const LATE_LOOKS: u32 = 3;
const LATE_PAUSE: Duration = Duration::from_millis(500);

/// All that a workload makes.
#[must_use]
pub fn resources(plan: &Workload) -> Vec<Resource> {
    let services = plan.services.iter().map(|service| service.container.clone());
    let mut resources: Vec<Resource> = services
        .chain([plan.names.build.clone(), plan.names.helper.clone()])
        .map(Resource::Container)
        .collect();
    resources
        .extend(plan.access.buildkit().map(|_| Resource::Container(plan.names.buildkit.clone())));
    match &plan.network {
        NetworkPlan::Own { name, .. } => resources.push(Resource::Network(name.clone())),
        NetworkPlan::Default | NetworkPlan::Given(_) => {
            // The guard's, for the job's containers.
            let guarded = plan.access.guarded().map(|_| plan.names.network.clone());
            resources.extend(guarded.map(Resource::Network));
        }
    }
    resources.extend(plan.mounts.temporary().map(|volume| Resource::Volume(volume.name.clone())));
    resources
}

/// How containers are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anonymous {
    /// Their anonymous volumes go too (`volume_keep` says otherwise).
    pub remove: bool,
}

/// Removes resources; returns the errors of those that could not be.
pub async fn remove(engine: &Engine, resources: &[Resource], anonymous: Anonymous) -> Vec<Error> {
    let mut errors = remove_containers(engine, resources, anonymous).await;
    errors.extend(remove_rest(engine, resources).await);
    errors
}

/// Removes the containers among resources.
pub async fn remove_containers(
    engine: &Engine,
    resources: &[Resource],
    anonymous: Anonymous,
) -> Vec<Error> {
    let containers = resources.iter().filter_map(|resource| match resource {
        Resource::Container(name) => Some(remove_container(engine, name, anonymous)),
        Resource::Network(_) | Resource::Volume(_) => None,
    });
    future::join_all(containers).await.into_iter().filter_map(Result::err).collect()
}

/// Removes what containers used, once they are gone.
pub async fn remove_rest(engine: &Engine, resources: &[Resource]) -> Vec<Error> {
    let rest = resources.iter().map(|resource| async move {
        match resource {
            Resource::Container(_) => Ok(()),
            Resource::Network(name) => remove_network(engine, name).await,
            Resource::Volume(name) => remove_volume(engine, name).await,
        }
    });
    future::join_all(rest).await.into_iter().filter_map(Result::err).collect()
}

/// What bears this longshore's label on the engine, and the job's when one is named: a request
/// that was under way when a job was stopped may have made something after it was removed.
///
/// # Errors
/// When the engine cannot list them.
pub async fn labelled(
    engine: &Engine,
    instance: &str,
    job: Option<JobId>,
) -> Result<Vec<Resource>, Error> {
    let job_label = format!("{LABEL_PREFIX}.job.id");
    let reusable_label = format!("{LABEL_PREFIX}.reusable");
    let job = job.map(|job| job.to_string());
    let mut labels = BTreeMap::from([(INSTANCE_LABEL, instance)]);
    if let Some(job) = &job {
        labels.insert(&job_label, job);
    }
    let client = engine.client();
    let filters = spec::label_filter(&labels);
    let containers = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let networks = ListNetworksOptionsBuilder::new().filters(&filters).build();
    // Volumes that later jobs use again bear no job's number, and stay.
    labels.insert(&reusable_label, "false");
    let filters = spec::label_filter(&labels);
    let volumes = ListVolumesOptionsBuilder::new().filters(&filters).build();
    let (containers, networks) = future::try_join(
        async {
            client
                .list_containers(Some(containers))
                .await
                .map_err(Error::of("list the containers", ""))
        },
        async {
            client.list_networks(Some(networks)).await.map_err(Error::of("list the networks", ""))
        },
    )
    .await?;
    let mut resources: Vec<Resource> =
        containers.into_iter().filter_map(|c| c.id).map(Resource::Container).collect();
    resources.extend(networks.into_iter().filter_map(|n| n.id).map(Resource::Network));
    let volumes =
        client.list_volumes(Some(volumes)).await.map_err(Error::of("list the volumes", ""))?;
    let names = volumes.volumes.unwrap_or_default().into_iter().map(|v| v.name);
    resources.extend(names.map(Resource::Volume));
    Ok(resources)
}

/// Volumes of this longshore's layer-cache slots.
///
/// # Errors
/// When the engine cannot list them.
pub async fn layers(engine: &Engine, instance: &str) -> Result<Vec<String>, Error> {
    let type_label = format!("{LABEL_PREFIX}.type");
    let labels = BTreeMap::from([(INSTANCE_LABEL, instance), (&type_label, LAYERS_TYPE)]);
    let options = ListVolumesOptionsBuilder::new().filters(&spec::label_filter(&labels)).build();
    let listed = engine.client().list_volumes(Some(options)).await;
    let listed = listed.map_err(Error::of("list the volumes", ""))?;
    Ok(listed.volumes.unwrap_or_default().into_iter().map(|volume| volume.name).collect())
}

/// Removes what requests that were under way when a job was stopped, or its longshore died, have made
/// since: they are the engine's to finish, and it does so in its own time.
pub async fn remove_late(
    engine: &Engine,
    instance: &str,
    job: JobId,
    anonymous: Anonymous,
) -> Vec<Error> {
    let mut errors = Vec::new();
    for _ in 0..LATE_LOOKS {
        sleep(LATE_PAUSE).await;
        match labelled(engine, instance, Some(job)).await {
            Ok(late) => errors.extend(remove(engine, &late, anonymous).await),
            Err(error) => errors.push(error),
        }
    }
    errors
}

async fn remove_container(engine: &Engine, name: &str, anonymous: Anonymous) -> Result<(), Error> {
    until_free(|| async {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(anonymous.remove).build();
        engine
            .client()
            .remove_container(name, Some(options))
            .await
            .map_err(Error::of("remove the container", name))
    })
    .await
}

async fn remove_network(engine: &Engine, name: &str) -> Result<(), Error> {
    until_free(|| async {
        engine.client().remove_network(name).await.map_err(Error::of("remove the network", name))
    })
    .await
}

async fn remove_volume(engine: &Engine, name: &str) -> Result<(), Error> {
    until_free(|| async {
        engine
            .client()
            .remove_volume(name, None::<RemoveVolumeOptions>)
            .await
            .map_err(Error::of("remove the volume", name))
    })
    .await
}

/// Removes something that may be gone already, or in use for a moment more.
async fn until_free<F, R>(attempt: F) -> Result<(), Error>
where
    F: Fn() -> R,
    R: Future<Output = Result<(), Error>>,
{
    let mut tries = 1;
    loop {
        match attempt().await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => {
                let busy = error.is_conflict() || matches!(error.status(), Some(403 | 500));
                if !busy || tries == TRIES {
                    return Err(error);
                }
                tries += 1;
                sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::workload::testing::Case;

    fn case() -> Case {
        Case::new()
            .with("services", json!([{"name": "redis"}, {"name": "redis"}, {"name": "postgres"}]))
            .docker(r#"volumes = ["/keep", "/host:/dst"]"#)
    }

    #[test]
    fn docker_110_115_a_job_removes_its_containers_its_network_and_what_is_temporary() {
        let case =
            case().variable("FF_NETWORK_PER_BUILD", "true").variable("GIT_STRATEGY", "clone");
        let unique = "runner-abcdefghi-project-42-concurrent-1-00112233445566aa";
        let container = |name: &str| Resource::Container(format!("{unique}-{name}"));
        let builds = "c33bcaa1fd2c77edfc3893b41966cea8";
        assert_eq!(
            resources(&case.plan()),
            [
                container("redis-0"),
                container("postgres-2"),
                container("build"),
                container("predefined"),
                Resource::Network("runner-abcdefghi-42-1-88213".to_owned()),
                Resource::Volume(format!("{unique}-cache-{builds}")),
            ]
        );
    }

    #[test]
    fn a_jobs_buildkit_goes_with_its_state_and_its_socket() {
        let with = |build: &str| {
            let socket =
                format!("[runners.docker.socket]\nmode = \"guarded\"\nbuild = \"{build}\"");
            resources(&Case::new().docker(&socket).plan())
        };
        let (with, without) = (with("sidecar"), with("classic"));
        let more: Vec<&Resource> =
            with.iter().filter(|resource| !without.contains(resource)).collect();
        assert!(
            matches!(more[..], [Resource::Container(name), Resource::Volume(_), Resource::Volume(_)]
                if name.ends_with("-buildkit")),
            "{more:?}"
        );
    }

    #[test]
    fn docker_119_what_the_job_did_not_make_is_not_removed() {
        for mode in ["", "network_mode = \"ours\"", "network_mode = \"host\""] {
            let plan = case().docker(mode).variable("FF_NETWORK_PER_BUILD", "false").plan();
            let others = resources(&plan)
                .into_iter()
                .filter(|resource| !matches!(resource, Resource::Container(_)))
                .collect::<Vec<_>>();
            assert_eq!(others, [], "{mode}");
        }
    }

    #[test]
    fn docker_106_all_volumes_go_where_caches_are_disabled() {
        let plan = case().docker("disable_cache = true").plan();
        let volumes = resources(&plan)
            .into_iter()
            .filter(|resource| matches!(resource, Resource::Volume(_)))
            .count();
        assert_eq!((volumes, plan.mounts.volumes.len()), (2, 2));
    }
}
