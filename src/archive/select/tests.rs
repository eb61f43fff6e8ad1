use std::os::unix::fs::symlink;

use super::*;

/// A project with the files; a name that ends in a slash is a directory.
fn project(names: &[&str]) -> tempfile::TempDir {
    let project = tempfile::tempdir().unwrap();
    for name in names {
        let path = project.path().join(name);
        if name.ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
    }
    project
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// The files and the lines, the project's directory replaced by `WD`.
fn run(
    project: &tempfile::TempDir,
    paths: &[&str],
    exclude: &[&str],
    untracked: bool,
) -> (Vec<String>, Vec<String>) {
    let (paths, exclude) = (owned(paths), owned(exclude));
    let wanted = Wanted { paths: &paths, exclude: &exclude, untracked };
    let env = |name: &str| (name == "DIR").then(|| "bin".to_owned());
    let selection = select(project.path(), &wanted, &env);
    let wd = project.path().display().to_string();
    (
        selection.files.iter().map(|path| path.display().to_string()).collect(),
        selection.notes.iter().map(|note| note.to_string().replace(&wd, "WD")).collect(),
    )
}

const TREE: &[&str] = &[
    "bin/a",
    "bin/deep/b.txt",
    "bin/deep/.dot",
    "bin/none/",
    ".hidden",
    ".config/x",
    "c.txt",
    "d.log",
    "src/e.txt",
    "src/sub/f.log",
];

#[test]
fn docker_164_globs_dot_files_and_directories() {
    let project = project(TREE);
    let bin: &[&str] = &["bin", "bin/a", "bin/deep", "bin/deep/.dot", "bin/deep/b.txt", "bin/none"];
    let below: &[&str] = &bin[1..];
    for (path, files) in [
        ("bin", bin),
        ("bin/", bin),
        ("./bin", bin),
        ("bin/.", bin),
        ("src/../bin", bin),
        ("$DIR/", bin),
        ("bin/**", bin),
        ("bin/**/", bin),
        ("bin/**/**", bin),
        ("b?n", bin),
        ("{bin,nothing}", bin),
        ("bin/*", below),
        ("bin/**/*", below),
        ("bin/**/*.txt", &["bin/deep/b.txt"]),
        ("**/b.txt", &["bin/deep/b.txt"]),
        ("bin/**/a", &["bin/a"]),
        ("bin/a/**", &["bin/a"]),
        ("*.txt", &["c.txt"]),
        ("**/*.txt", &["bin/deep/b.txt", "c.txt", "src/e.txt"]),
        ("[!b]*.txt", &["c.txt"]),
        ("[^c]*.{txt,log}", &["d.log"]),
        ("*.{t{x,y}t,log}", &["c.txt", "d.log"]),
        (".*", &[".config", ".config/x", ".hidden"]),
        ("*/*.txt", &["src/e.txt"]),
        ("s*/sub/*", &["src/sub/f.log"]),
        ("c\\.txt", &["c.txt"]),
        ("src/{e.txt,sub/**}", &["src/e.txt", "src/sub", "src/sub/f.log"]),
    ] {
        let (found, notes) = run(&project, &[path], &[], false);
        assert_eq!(found, files, "{path}");
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].ends_with("matching artifact files and directories"), "{notes:?}");
    }
    for everything in [".", "./", "**", "*", "**/*"] {
        assert_eq!(run(&project, &[everything], &[], false).0.len(), 15, "{everything}");
    }
    let absolute = format!("{}/src/*.txt", project.path().display());
    assert_eq!(run(&project, &[&absolute], &[], false).0, ["src/e.txt"]);
    let around = format!("../{}/c.txt", project.path().file_name().unwrap().to_str().unwrap());
    assert_eq!(run(&project, &[&around], &[], false).0, ["c.txt"]);
}

#[test]
fn docker_164_excludes_are_matched_against_each_path() {
    let project = project(TREE);
    let (found, notes) = run(&project, &["bin", "src"], &["bin/deep", "**/*.log"], false);
    assert_eq!(
        found,
        [
            "bin",
            "bin/a",
            "bin/deep/.dot",
            "bin/deep/b.txt",
            "bin/none",
            "src",
            "src/e.txt",
            "src/sub"
        ]
    );
    assert_eq!(
        notes,
        [
            "bin: found 5 matching artifact files and directories",
            "src: found 3 matching artifact files and directories",
            "bin/deep: excluded 1 files",
            "**/*.log: excluded 1 files",
        ]
    );
    let (found, _) = run(&project, &["bin"], &["./bin/deep/**", "{x,$DIR/none}"], false);
    assert_eq!(found, ["bin", "bin/a"]);
}

#[test]
fn docker_164_counts_have_directories_and_duplicates() {
    let project = project(&["build/result.txt"]);
    let count = |path: &str| run(&project, &[path], &[], false).1.remove(0);
    assert_eq!(count("build/"), "build/: found 2 matching artifact files and directories");
    // `build`, and `build/result.txt` in it and for itself.
    assert_eq!(count("build/**"), "build/**: found 3 matching artifact files and directories");
}

#[test]
fn docker_165_a_path_outside_the_project_is_ignored_with_a_warning() {
    let project = project(&["a"]);
    let sibling = format!("{}-other/a", project.path().display());
    for path in ["../a", "/etc/passwd", "x/../../a", "..", "/", &sibling, "../*"] {
        let (found, notes) = run(&project, &[path, "a"], &[], false);
        assert_eq!(found, ["a"]);
        let sibling = sibling.replace(&project.path().display().to_string(), "WD");
        let path = if path.ends_with("-other/a") { sibling.as_str() } else { path };
        assert_eq!(
            notes[0],
            format!(
                "WARNING: processPath: artifact path is not a subpath of project directory: {path}"
            )
        );
    }
}

#[test]
fn docker_165_links_are_entries_and_lead_nowhere() {
    let project = project(&["real/a"]);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    symlink(outside.path(), project.path().join("out")).unwrap();
    symlink("real", project.path().join("in")).unwrap();
    let found = |path: &str| run(&project, &[path], &[], false).0;
    assert_eq!(found("*"), ["in", "out", "real", "real/a"]);
    assert_eq!(found("out"), ["out"]);
    assert_eq!(found("out/"), ["out"]);
    assert_eq!(found("out/secret"), [""; 0]);
    assert_eq!(found("out/*"), [""; 0]);
    assert_eq!(found("in/a"), ["in/a"]);
}

#[test]
fn docker_158_166_no_match_is_a_warning_that_names_the_directory() {
    let project = project(&["a"]);
    let (found, notes) = run(&project, &["missing/*.txt", ""], &[], false);
    assert!(found.is_empty());
    assert_eq!(
        notes,
        [
            "WARNING: missing/*.txt: no matching files. Ensure that the artifact path is relative \
             to the working directory (WD)",
            "WARNING: No matching files. Path is empty.",
        ]
    );
}

#[test]
fn bad_patterns_and_bad_expansions_are_reported_and_do_not_stop_the_rest() {
    let project = project(&["a", "$(x)"]);
    let (found, notes) = run(&project, &["x[", "{a", "$(x)", "a"], &["y["], false);
    assert_eq!(found, ["$(x)", "a"]);
    let starts = [
        "WARNING: y[: syntax error in pattern: ",
        "WARNING: x[: syntax error in pattern: ",
        "WARNING: {a: syntax error in pattern: ",
        "WARNING: $(x): command substitution is not supported",
        "$(x): found 1 ",
        "a: found 1 ",
    ];
    assert_eq!(notes.len(), starts.len(), "{notes:?}");
    for (note, start) in notes.iter().zip(starts) {
        assert!(note.starts_with(start), "{note}");
    }
}

#[test]
fn untracked_files_are_those_git_does_not_track_with_the_ignored_ones() {
    let project = project(&["tracked", "new", "dir/new ü", "ignored.o", ".gitignore"]);
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(["-c", "user.name=x", "-c", "user.email=x@example.com"])
            .args(arguments)
            .current_dir(project.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    fs::write(project.path().join(".gitignore"), "*.o\n").unwrap();
    git(&["init", "-q"]);
    git(&["add", "tracked", ".gitignore"]);
    git(&["commit", "-qm", "x"]);
    let (found, notes) = run(&project, &[], &["new"], true);
    assert_eq!(found, ["dir/new ü", "ignored.o"]);
    assert_eq!(notes, ["untracked: found 2 files", "new: excluded 1 files"]);
    let (_, notes) = run(&project, &[], &["**"], true);
    assert_eq!(notes[0], "WARNING: untracked: no files");
}

#[test]
fn untracked_files_of_what_is_no_repository_are_a_warning() {
    let project = project(&["a"]);
    let (found, notes) = run(&project, &["a"], &[], true);
    assert_eq!(found, ["a"]);
    assert!(notes[1].starts_with("WARNING: untracked: exit status: 128"), "{notes:?}");
}

#[test]
fn files_are_sorted_by_their_bytes() {
    let project = project(&["a/x", "a-b", "a.c", "B"]);
    assert_eq!(run(&project, &["*"], &[], false).0, ["B", "a", "a-b", "a.c", "a/x"]);
}
