use super::*;

#[test]
fn places_are_told_from_files() {
    let repository = |name: &str, file: Option<&str>| {
        Some(Place::Repository { name: name.to_owned(), file: file.map(str::to_owned) })
    };
    assert_eq!(Place::parse("hf:owner/repo-GGUF").unwrap(), repository("owner/repo-GGUF", None));
    assert_eq!(Place::parse("hf:o/r:sub/f.Q8_0.gguf").unwrap(), repository("o/r", Some("sub/f.Q8_0.gguf")));
    assert!(matches!(Place::parse("https://example.org/m.gguf").unwrap(), Some(Place::Url(_))));
    for file in ["model.gguf", "./hf/model.gguf", "C:model"] {
        assert_eq!(Place::parse(file).unwrap(), None);
    }
    for bad in [
        "hf:",
        "hf:repo",
        "hf:o/",
        "hf:../r",
        "hf:o/..",
        "hf:o/r/s",
        "hf:o/r:",
        "hf:o/r:a/../b",
        "hf:o/r:a?b",
        "https://",
    ] {
        assert_eq!(Place::parse(bad).unwrap_err().error_code(), ErrorCode::Usage, "{bad}");
    }
}

#[test]
fn the_file_that_is_meant_is_found_or_asked_for() {
    let files = |names: &[&str]| choose("o/r", names.iter().map(|name| (*name).to_owned()).collect());
    assert_eq!(files(&["README.md", "m.gguf"]).unwrap(), "m.gguf");
    assert_eq!(files(&["m.Q8_0.gguf", "m.Q4_K_M.gguf", "m.f16.gguf"]).unwrap(), "m.Q4_K_M.gguf");
    let error = files(&["m.Q8_0.gguf", "m.f16.gguf"]).unwrap_err();
    assert!(error.message.contains("m.Q8_0.gguf, m.f16.gguf"), "{error}");
    assert_eq!(files(&["model.safetensors"]).unwrap_err().error_code(), ErrorCode::NotFound);
}

#[test]
fn the_token_is_for_the_endpoint_alone() {
    let hub = Hub::new("https://hub.example/", Some("secret".to_owned()), Duration::ZERO).unwrap();
    let at = |url: &str| hub.is_endpoint(&url.parse().unwrap());
    assert!(at("https://hub.example/o/r/resolve/main/m.gguf"));
    for other in
        ["http://hub.example/", "https://hub.example:8443/", "https://cdn.hub.example/", "https://hub.example.org/"]
    {
        assert!(!at(other), "{other}");
    }
    assert_eq!(hub.at("o/r/resolve/main/m.gguf").unwrap().as_str(), "https://hub.example/o/r/resolve/main/m.gguf");
}
