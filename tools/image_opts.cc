#include "tools/image_opts.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/option_list.h"
#include "tools/cli_text.h"

namespace spindle {
namespace {

bool is_restricted = false;

}  // namespace

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

void restrict_images() { is_restricted = true; }

ImageOpener::Policy tool_policy(std::shared_ptr<const SecretStore> secrets) {
  ImageOpener::Policy policy;
  policy.probe_image = true;
  policy.probe_backing = !is_restricted;
  policy.name_syntax = NameSyntax::kQemu;
  policy.image_name_syntax =
      is_restricted ? NameSyntax::kPlain : NameSyntax::kQemu;
  policy.secrets = std::move(secrets);
  policy.log = [](LogSeverity severity, absl::string_view message) {
    if (severity == LogSeverity::kWarning) warn(message);
    if (severity == LogSeverity::kError) fail(message);
  };
  return policy;
}

absl::StatusOr<std::shared_ptr<BlockDriver>> open_image(
    const ImageOpener& opener, const ImageArgument& image,
    const OpenOptions& options) {
  if (!image.image_opts) return opener.open(image.name, image.format, options);
  return opener.open_nodes(parse_image_opts(image.name), options);
}

OptionMap parse_image_opts(const std::string& text,
                           absl::string_view implied_name) {
  OptionMap options;
  for (const OptionItem& item : split_option_list(text, implied_name)) {
    if (!item.short_form.empty()) {
      warn(absl::StrCat("short-form boolean option '", item.short_form,
                        "' deprecated\nPlease use ", item.name, "=", item.value,
                        " instead"));
    }
    options[item.name] = item.value;
  }
  return options;
}

void add_key_secrets(const OptionMap& creation, OptionMap* driver_options) {
  for (const auto& [name, value] : creation) {
    if (absl::EndsWith(name, "key-secret")) (*driver_options)[name] = value;
  }
}

}  // namespace spindle
