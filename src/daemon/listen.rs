//! `listen_address`: metrics and the state of jobs over HTTP (docs/compatibility.md, "HTTP
//! endpoints"). It has neither TLS nor passwords, and shows no secrets.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::header::{CONTENT_TYPE, HeaderName},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::runner::metrics::Metrics;

/// How long answers under way are waited for at the end.
const ENDING: Duration = Duration::from_secs(1);

/// Listens at `host:port`, without a host at every address.
pub(crate) async fn bind(address: &str) -> io::Result<TcpListener> {
    match address.strip_prefix(':') {
        // Where there is no IPv6, its every address is none.
        Some(port) => match TcpListener::bind(format!("[::]:{port}")).await {
            Ok(listener) => Ok(listener),
            Err(_) => TcpListener::bind(format!("0.0.0.0:{port}")).await,
        },
        None => TcpListener::bind(address).await,
    }
}

/// Answers until `stop`.
pub(crate) async fn serve(listener: TcpListener, metrics: Arc<Metrics>, stop: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(text))
        .route("/debug/jobs/list", get(jobs))
        .route("/health/ready", get(async || "OK\n"))
        .with_state(metrics);
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "metrics are served");
    }
    let ending = stop.clone().cancelled_owned();
    let serve = axum::serve(listener, router).with_graceful_shutdown(ending).into_future();
    tokio::pin!(serve);
    let ended = tokio::select! {
        ended = &mut serve => Ok(ended),
        () = stop.cancelled() => timeout(ENDING, serve).await,
    };
    if let Ok(Err(error)) = ended {
        tracing::error!(%error, "metrics are not served any more");
    }
}

async fn text(State(metrics): State<Arc<Metrics>>) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(CONTENT_TYPE, kind)], metrics.text()).into_response()
}

async fn jobs(State(metrics): State<Arc<Metrics>>) -> Response {
    let version = HeaderName::from_static("x-list-version");
    ([(version, "2")], metrics.jobs()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_are_served_until_the_end() {
        let listener = bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let metrics = Arc::new(Metrics::new("s".to_owned()));
        let stop = CancellationToken::new();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let look = async {
            let page = client.get(format!("{url}/metrics")).send().await.unwrap();
            let kind = page.headers()["content-type"].to_str().unwrap().to_owned();
            assert!(kind.starts_with("text/plain"), "{kind}");
            assert!(page.text().await.unwrap().contains("\ngitlab_runner_concurrent 0\n"));
            let head = client.head(format!("{url}/metrics")).send().await.unwrap();
            assert_eq!(head.status(), 200);
            let list = client.get(format!("{url}/debug/jobs/list")).send().await.unwrap();
            assert_eq!(list.headers()["x-list-version"], "2");
            let ready = client.get(format!("{url}/health/ready")).send().await.unwrap();
            assert_eq!(ready.status(), 200);
            let profile = client.get(format!("{url}/debug/pprof/")).send().await.unwrap();
            assert_eq!(profile.status(), 404);
            stop.cancel();
        };
        tokio::join!(serve(listener, metrics, stop.clone()), look);
    }
}
