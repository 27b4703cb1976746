#include "tools/image_opts.h"

#include "absl/strings/match.h"
#include "tools/cli_text.h"

namespace spindle {

void add_object_option(CLI::App* command, std::vector<std::string>* objects) {
  command
      ->add_option("--object", *objects,
                   "secret,id=ID,data=TEXT|file=NAME|env=NAME"
                   "[,format=raw|base64]: what key-secret=ID refers to")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
}

absl::StatusOr<std::shared_ptr<const SecretStore>> load_secrets(
    const std::vector<std::string>& objects) {
  if (objects.empty()) return nullptr;
  auto store = std::make_shared<SecretStore>();
  for (const std::string& object : objects) {
    const absl::Status status = store->add_object(object);
    if (!status.ok()) return status;
  }
  return store;
}

absl::StatusOr<std::shared_ptr<BlockDriver>> open_named(
    const ImageOpener& opener, const std::string& name,
    const std::string& format, bool image_opts, const OpenOptions& options) {
  if (!image_opts) return opener.open(name, format, options);
  if (!format.empty()) {
    return absl::InvalidArgumentError(
        "--image-opts and a format are mutually exclusive");
  }
  OptionMap nodes;
  for (const auto& [key, value] : parse_option_list(name).options)
    nodes[key] = value;
  return opener.open_nodes(nodes, options);
}

void add_key_secrets(const OptionMap& creation, OptionMap* driver_options) {
  for (const auto& [name, value] : creation) {
    if (absl::EndsWith(name, "key-secret")) (*driver_options)[name] = value;
  }
}

}  // namespace spindle
