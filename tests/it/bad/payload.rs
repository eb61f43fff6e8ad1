//! Payloads that are not what they should be.

use serde_json::json;

use crate::{engine::engine, gitlab::job, longshore::Case};

#[tokio::test(flavor = "multi_thread")]
async fn api_73_unknown_fields_everywhere_are_ignored() {
    let case = Case::start().await;
    let spec = job(&["echo works"]).bent(|payload| {
        for pointer in ["", "/job_info", "/git_info", "/steps/0", "/image", "/features"] {
            payload.pointer_mut(pointer).unwrap()["of_the_future"] = json!({"deep": [1, null]});
        }
    });
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["works"]);
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_72_a_payload_of_id_and_token_ends_with_a_reason_or_a_success() {
    let case = Case::start().await;
    let spec = job(&["echo never"]).bent(|payload| {
        *payload = json!({"id": payload["id"], "token": payload["token"]});
    });
    let ended = case.run(spec).await;
    match ended.state() {
        "success" => {}
        _ => ended.assert_contains("ERROR: Job failed"),
    }
    engine().nothing_left_of(ended.id).await;
    case.run(job(&["true"])).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn api_72_null_stands_for_what_is_missing() {
    let case = Case::start().await;
    let spec = job(&["echo works"]).bent(|payload| {
        for key in ["services", "artifacts", "cache", "dependencies", "credentials", "runner_info"]
        {
            payload[key] = json!(null);
        }
        payload["of_the_future"] = json!(null);
        payload["run"] = json!(null);
    });
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["works"]);
}

/// The job must fail at the server, with a reason that names `key`; then another must run.
async fn fails_with(bend: fn(&mut serde_json::Value), key: &str) {
    let case = Case::start().await;
    let ended = case.run(job(&["echo never"]).bent(bend)).await;
    assert_eq!(ended.state(), "failed", "{}", ended.story());
    ended.assert_contains("cannot be understood");
    ended.assert_contains(key);
    ended.assert_no_line("never");
    assert!(!ended.text().contains("hidden-value"), "{}", ended.story());
    engine().nothing_left_of(ended.id).await;
    let next = case.run(job(&["echo works"])).await;
    next.assert_success();
    engine().nothing_left_of(next.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_that_are_no_list_fail_the_job_at_its_server() {
    fails_with(|payload| payload["variables"] = json!(3), "variables").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_the_wrong_type_fails_the_job_and_its_value_is_not_shown() {
    let bend = |payload: &mut serde_json::Value| payload["steps"] = json!("hidden-value");
    fails_with(bend, "steps").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_whose_number_is_a_text_fails_the_job() {
    fails_with(|payload| payload["job_info"]["project_id"] = json!("x"), "project_id").await;
}
