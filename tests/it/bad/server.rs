//! Servers that are not well: what is between longshore and a GitLab answers in its place.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::{
    engine::engine,
    gitlab::job,
    longshore::{Case, Options},
};

/// What becomes of a connection.
#[derive(Clone)]
enum Mood {
    /// It is passed on.
    Pass,
    /// Its request is answered with these bytes.
    Say(Arc<str>),
    /// A request for a job is answered with these bytes; others are passed on.
    SayToPolls(Arc<str>),
    /// Its request is never answered.
    Hang,
    /// It is closed.
    Close,
}

/// Stands between longshore and the server at `upstream`.
struct Between {
    address: SocketAddr,
    mood: watch::Sender<Mood>,
    /// Connections that were not passed on.
    spoiled: watch::Receiver<usize>,
    upstream: watch::Sender<String>,
    _server: JoinSet<()>,
}

impl Between {
    async fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mood = watch::Sender::new(mood);
        let upstream = watch::Sender::new(String::new());
        let (count, spoiled) = watch::channel(0);
        let (moods, target) = (mood.subscribe(), upstream.subscribe());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (mut changed, target) = (moods.clone(), target.clone());
                let mood = changed.borrow_and_update().clone();
                if !matches!(mood, Mood::Pass) {
                    count.send_modify(|count| *count += 1);
                }
                connections.spawn(async move {
                    // Another mood breaks all connections off.
                    tokio::select! {
                        () = serve(client, mood, &target) => {}
                        _ = changed.changed() => {}
                    }
                });
            }
        });
        Self { address, mood, spoiled, upstream, _server: server }
    }

    async fn case(&self) -> Case {
        let url = self.url();
        let edit = move |text: String| {
            let (before, rest) = text.split_once("url = \"").unwrap();
            let (_, after) = rest.split_once('"').unwrap();
            format!("{before}url = \"{url}\"{after}")
        };
        let case = Case::with(Options { edit: Some(Box::new(edit)), ..Options::default() }).await;
        self.upstream.send_replace(case.gitlab.url.trim_start_matches("http://").to_owned());
        case
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn become_(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Waits until so many more connections were spoiled.
    async fn until_spoiled(&self, more: usize) {
        let mut spoiled = self.spoiled.clone();
        let wanted = *spoiled.borrow() + more;
        let waited = spoiled.wait_for(|count| *count >= wanted);
        tokio::time::timeout(Duration::from_mins(1), waited).await.expect("polling ended").unwrap();
    }
}

async fn serve(mut client: TcpStream, mood: Mood, target: &watch::Receiver<String>) {
    let answered = async {
        let mood = match mood {
            Mood::SayToPolls(answer) => {
                let mut line = [0; 64];
                let length = client.peek(&mut line).await?;
                let is_poll = String::from_utf8_lossy(&line[..length]).contains("/jobs/request");
                if is_poll { Mood::Say(answer) } else { Mood::Pass }
            }
            mood => mood,
        };
        match mood {
            Mood::Pass => {
                let target = target.borrow().clone();
                let mut upstream = TcpStream::connect(target).await?;
                copy_bidirectional(&mut client, &mut upstream).await.map(drop)
            }
            Mood::Say(answer) => {
                read_request(&mut client).await?;
                client.write_all(answer.as_bytes()).await?;
                client.shutdown().await
            }
            Mood::SayToPolls(_) => unreachable!("was decided"),
            Mood::Hang => std::future::pending().await,
            Mood::Close => Ok(()),
        }
    };
    // longshore may go away at any time.
    drop(answered.await);
}

/// Reads a request to its end: to close on one half read resets the connection.
async fn read_request(client: &mut TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    loop {
        if client.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&request).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0) {
                return Ok(());
            }
        }
    }
}

fn answer(status: &str, headers: &str, body: &str) -> Mood {
    let length = body.len();
    Mood::Say(
        format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        )
        .into(),
    )
}

/// longshore meets the mood, says `wanted` of it, and takes a job once it is over.
async fn bears(mood: Mood, wanted: &[&str]) {
    let between = Between::start(mood).await;
    let case = between.case().await;
    between.until_spoiled(3).await;
    for text in wanted {
        case.until_log(text, 0).await;
    }
    between.become_(Mood::Pass);
    let ended = case.run(job(&["echo works"])).await;
    ended.assert_success();
    ended.assert_lines(&["works"]);
    engine().nothing_left_of(ended.id).await;
}

const HTML: &str = "<html><body>Down for maintenance</body></html>";

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_place_of_an_answer_is_borne() {
    bears(
        answer("200 OK", "Content-Type: text/html\r\n", HTML),
        &["asking for a job failed", "200"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_61_a_page_in_place_of_a_job_is_borne() {
    let mood = answer("201 Created", "Content-Type: text/html\r\n", HTML);
    bears(mood, &["text/html"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_61_half_a_job_is_borne() {
    let json = "Content-Type: application/json\r\n";
    bears(answer("201 Created", json, "{\"id\": "), &["cannot be understood"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_51_a_server_that_closes_every_connection_is_asked_again() {
    bears(Mood::Close, &["asking for a job failed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_51_server_errors_never_end_the_polling() {
    let html = "Content-Type: text/html\r\n";
    let between = Between::start(answer("502 Bad Gateway", html, HTML)).await;
    let case = between.case().await;
    // Four polls of five attempts each.
    between.until_spoiled(20).await;
    case.until_log("502", 1).await;
    between.become_(answer("503 Service Unavailable", html, HTML));
    between.until_spoiled(10).await;
    case.until_log("503", 1).await;
    assert!(!case.log().contains("paused"), "{}", case.log());
    between.become_(Mood::Pass);
    case.run(job(&["echo works"])).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_itself_ends_with_a_clear_word() {
    let between = Between::start(Mood::Close).await;
    let location = format!("Location: {}/api/v4/jobs/request\r\n", between.url());
    between.become_(answer("307 Temporary Redirect", &location, ""));
    let case = between.case().await;
    // Two polls of one request and ten redirects.
    between.until_spoiled(22).await;
    case.until_log("redirect", 0).await;
    between.become_(Mood::Pass);
    case.run(job(&["echo works"])).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_taken_through_a_redirect() {
    let between = Between::start(Mood::Close).await;
    let case = between.case().await;
    let other = Between::start(Mood::Pass).await;
    other.upstream.send_replace(case.gitlab.url.trim_start_matches("http://").to_owned());
    let location = format!("Location: {}/api/v4/jobs/request\r\n", other.url());
    let id = case.gitlab.submit(job(&["echo works"]));
    // Only the queue moved.
    let Mood::Say(moved) = answer("307 Temporary Redirect", &location, "") else { unreachable!() };
    between.become_(Mood::SayToPolls(moved));
    case.gitlab.ended(id).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_headers_is_borne() {
    let garbage = "X-GitLab-Last-Update: \u{fe}\u{ff}\r\nRetry-After: soon\r\n\
                   RateLimit-ResetTime: never\r\nX-GitLab-Trace-Update-Interval: -1\r\n";
    bears(answer("204 No Content", garbage, ""), &[]).await;
    bears(answer("429 Too Many", garbage, ""), &["429"]).await;
    let control = answer("204 No Content", "X-GitLab-Last-Update: \u{1}\r\n", "");
    bears(control, &["asking for a job failed"]).await;
    bears(Mood::Say("\u{1}\u{2} this is no HTTP\r\n\r\n".into()), &["asking for a job failed"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_does_not_keep_longshore_from_ending() {
    let between = Between::start(Mood::Hang).await;
    let mut case = between.case().await;
    between.until_spoiled(1).await;
    case.signal(rustix::process::Signal::TERM);
    assert!(case.exit().await.success(), "{}", case.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_job_is_lost_while_its_server_cannot_be_reached() {
    let between = Between::start(Mood::Pass).await;
    let case = between.case().await;
    let id = case.gitlab.submit(job(&["echo started", "seq 1 5", "sleep 4", "echo finished"]));
    case.gitlab.until_output(id, "started").await;
    for mood in [
        Mood::Close,
        answer("502 Bad Gateway", "Content-Type: text/html\r\n", HTML),
        answer("200 OK", "Content-Type: text/html\r\n", HTML),
    ] {
        // What the server took may not have been answered.
        case.gitlab.allow_jump(id);
        between.become_(mood);
        between.until_spoiled(3).await;
    }
    between.become_(Mood::Pass);
    let ended = case.gitlab.ended(id).await;
    ended.assert_success();
    ended.assert_lines(&["started", "1", "5", "finished"]);
    engine().nothing_left_of(id).await;
}
